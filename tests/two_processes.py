"""A program for tests: several processes train together, one after the other config; the first writes what it saw.

python -m tests.two_processes CACHE OUT.json     (with the environment that torchrun gives)
"""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from tests.helpers import tiny_models
from vidcache.cache.reader import CacheReader
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InterruptedRunError, VidcacheError
from vidcache.train.callbacks import Callback
from vidcache.train.config import TrainConfig
from vidcache.train.distributed import Processes, init_distributed
from vidcache.train.loop import train

# 22 training clips of 2 classes: the last step of an epoch is short, in "one clip left" too short for two processes.
# The batch norm of the stem is frozen: on CPUs, each process uses the statistics of its own clips.
BASE = TrainConfig(weights="none", freeze="stem", epochs=2, batch_size=6, amp="off", lr=1e-3, seed=3)
SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd batches": {"batch_size": 5},
    "one clip left": {"batch_size": 7, "balance": "none"},
    "accumulated": {"accumulate": 2, "clip_norm": 0.1, "label_smoothing": 0.1},
    "in bf16": {"amp": "bf16"},
    "features": {"feature_views": 2},
    "nothing moves": {"lr": 1e-12, "weight_decay": 0.0},
    "r3d-18": {"freeze": "all", "batch_size": 8, "epochs": 1, "lr": 1e-5},
}


def run(cache: Path, name: str, folder: Path, ranks: Processes | None = None) -> dict[str, Any]:
    """Train as a scenario says; the loss of every step, and what validation said."""
    config = dataclasses.replace(BASE, **SCENARIOS[name])
    steps: list[float] = []
    callback = Callback(on_step=lambda _epoch, _n, sums: steps.append(sums.mean_loss))
    config = dataclasses.replace(config, feature_file=str(folder / f"features-{name}.h5"))
    with CacheReader(cache) as reader, contextlib.nullcontext() if name == "r3d-18" else tiny_models():
        result = train(reader, config, [callback], processes=ranks)
    return {"steps": steps, "val": [epoch.val_loss for epoch in result.epochs], "best": result.best_epoch}


def resumed(cache: Path, ranks: Processes) -> dict[str, Any]:
    """Stop together in the middle because one process is asked to, and go on."""
    saved: list[Checkpoint] = []
    count, steps = [0], []
    keep = Callback(on_step=lambda _epoch, _n, sums: steps.append(sums.mean_loss))

    def should_stop() -> bool:
        count[0] += 1
        return (
            ranks.rank == 1 and count[0] == 7
        )  # asked after every step and epoch: in the second step of the second epoch

    with CacheReader(cache) as reader, tiny_models():
        try:
            train(reader, BASE, [Callback(on_stop=saved.append)], should_stop=should_stop, processes=ranks)
        except InterruptedRunError as error:
            said = str(error)
        last = ranks.run_on_main(lambda: saved[0])
        result = train(reader, BASE, [keep], processes=ranks, resume=last)
    return {"said": ranks.gather(said), "steps": steps, "val": [epoch.val_loss for epoch in result.epochs]}


def errors(cache: Path, ranks: Processes) -> dict[str, Any]:
    """What each process says when a loss is no number, when options differ, and when the first one cannot."""
    said: dict[str, list[str]] = {}
    for name, changes in {
        "not finite": {"lr": 1e30},
        "other options": {"seed": ranks.rank},
        "other frames": {"num_frames_used": 99},
    }.items():
        with CacheReader(cache) as reader, tiny_models():
            try:
                train(reader, dataclasses.replace(BASE, **changes), processes=ranks)
                answer = "nothing"
            except VidcacheError as error:
                answer = f"{type(error).__name__}: {error}"
        said[name] = ranks.gather(answer)

    def fail() -> None:
        raise VidcacheError("the first cannot")

    try:
        ranks.run_on_main(fail)
        answer = "nothing"
    except VidcacheError as error:
        answer = str(error)
    said["first fails"] = ranks.gather(answer)
    return said


def main() -> None:
    """Do all of it."""
    cache, out = Path(sys.argv[1]), Path(sys.argv[2])
    with init_distributed("cpu") as ranks:
        found: dict[str, Any] = {name: run(cache, name, out.parent, ranks) for name in SCENARIOS}
        found["resumed"] = resumed(cache, ranks)
        found["errors"] = errors(cache, ranks)
        found["ranks"] = ranks.gather([ranks.rank, ranks.world_size, ranks.device, ranks.is_main])
        if ranks.is_main:
            out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
