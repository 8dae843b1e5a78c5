"""Security of the server: who may call it, and how much."""
