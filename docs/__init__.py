"""Guides, and the programs that write the pages and the picture that are made of the code."""
