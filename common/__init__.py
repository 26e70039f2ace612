"""The words that every folder shares: spec, errors, sampling arithmetic, model, checkpoint.

Turns nothing into anything. May import nothing else of vidcache; must not know ffmpeg or HDF5.
"""
