"""Turns an evaluation into tables, pictures and one HTML page. May import vidcache.cache and vidcache.eval."""
