"""Reference models, written to be read: no caches, no blocking tricks, every formula in full."""
