"""Decode videos once into a cache, train a video classifier on it, evaluate it honestly.

The ten public names; everything else is private by convention:

* `build_cache(raw, cache)`: decode raw/<class>/<video> into one HDF5 file.
* `train(cache, out="best.pt")`: fine-tune R3D-18 on a cache.
* `evaluate(cache, checkpoint)`: metrics with confidence intervals on the test clips.
* `predict(checkpoint, videos)`: classify video files.
* `CacheReader(path)`: clips of a cache as (B, T, H, W, 3) uint8 RGB arrays.
* `ClipDataset(cache, split)`: the same as a torch data set of (clip, label).
* `normalize(clips)`: from these bytes to the (B, 3, T, H, W) float32 that models take.
* `load_checkpoint(path)`: the weights and facts of a checkpoint.
* `Spec`: frames, height and width of a clip.
* `__version__`

They are imported when they are used: `import vidcache` loads neither torch nor numpy. This folder holds what all
others share; it may import nothing else of vidcache, and must not know ffmpeg or HDF5.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidcache.cache.dataset import ClipDataset
    from vidcache.cache.reader import CacheReader
    from vidcache.checkpoint import load_checkpoint
    from vidcache.eval.evaluate import evaluate
    from vidcache.eval.predict import predict
    from vidcache.pixels import normalize
    from vidcache.preprocess.build import build_cache
    from vidcache.spec import Spec
    from vidcache.train.run import run_training as train

    __version__: str

__all__ = [
    "CacheReader",
    "ClipDataset",
    "Spec",
    "__version__",
    "build_cache",
    "evaluate",
    "load_checkpoint",
    "normalize",
    "predict",
    "train",
]
_MODULES = {
    "CacheReader": "cache.reader",
    "ClipDataset": "cache.dataset",
    "Spec": "spec",
    "build_cache": "preprocess.build",
    "evaluate": "eval.evaluate",
    "load_checkpoint": "checkpoint",
    "normalize": "pixels",
    "predict": "eval.predict",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.metadata.version("vidcache")
    elif name == "train":  # a sub-package that can be called: its name is taken
        return importlib.import_module("vidcache.train")
    elif name in _MODULES:
        value = getattr(importlib.import_module(f"vidcache.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module 'vidcache' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
