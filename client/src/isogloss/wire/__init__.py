"""Definitions that client and server must share: enums, matrices, sizes and error details."""
