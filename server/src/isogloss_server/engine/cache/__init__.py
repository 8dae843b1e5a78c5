"""What is known already: rows of texts that came before, and of those that another caller is waiting for.

`cache.py` tells the order of things; `memory.py` keeps rows in this process, `flights.py` what is being computed,
`shared.py` asks a store that several servers share, which `redis.py` is.
"""
