"""What providers' APIs have in common: chunks, concurrency, retries within the deadline, a breaker, checked answers."""
