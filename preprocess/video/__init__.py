"""Turns a video file into frames. May import the package root and vidcache.cache; knows neither split nor analysis."""
