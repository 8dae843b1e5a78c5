"""Settings of the server: declarations, and the sources that set their values."""
