"""Turns a cache into `best.pt`.

May import the package root, `vidcache.cache` and `vidcache.eval`. Must not write to the cache.

The package can be called, since `vidcache.train` is both this package and the function of that name in the public API:
`vidcache.train("cache.h5", "best.pt", epochs=5)`; see `vidcache.train.run.run_training`.
"""

import sys
import types
from typing import Any


class _CallablePackage(types.ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        """Fine-tune a model on a cache: `vidcache.train.run.run_training`."""
        from vidcache.train.run import run_training  # torch takes 2 s to import

        return run_training(*args, **options)


sys.modules[__name__].__class__ = _CallablePackage
