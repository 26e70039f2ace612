"""Turns clips into rows of one `.h5` file, and back, and to the device.

May import the package root. Must not know ffmpeg or models.
"""
