"""Models: catalog, files, tokenizer, and a module for each runtime. interfaces.py has what the engine relies on."""
