"""Every head on one cache, over several seeds, in one table."""
