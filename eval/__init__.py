"""Turns a cache and a checkpoint into a report, a video file into a prediction, a checkpoint into a file for elsewhere.

May import the package root, `vidcache.cache`, and `vidcache.preprocess` to predict a video file and to check ffmpeg.
Must not change weights or the cache.
"""
