"""What computes vectors, one file a runtime; base.py holds the seams."""
