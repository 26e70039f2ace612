"""Turns raw videos into a cache file.

May import the package root and `vidcache.cache` (not `vidcache.cache.stream`). Must not import torch.
"""
