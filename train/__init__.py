"""Turns a cache into `best.pt`.

May import the package root, `vidcache.cache` and `vidcache.eval`. Must not write to the cache.
"""
