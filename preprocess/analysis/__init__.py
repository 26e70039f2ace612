"""Turns a cache or a folder of videos into findings, charts and a page. May import all of vidcache.preprocess."""
