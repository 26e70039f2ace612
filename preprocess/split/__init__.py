"""Turns a list of clips into train, val and test. May import the root, vidcache.cache and vidcache.preprocess.video."""
