"""One run on disk: best.pt where the user wants it, everything else in best.run/ beside it."""

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from vidcache.cache.joined import open_caches
from vidcache.cache.leaks import find_leaks
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError
from vidcache.files import write_text_atomically
from vidcache.train.curves import draw_curves
from vidcache.train.loop import EpochResult, Hooks, RunResult, TrainConfig, check_config, train


def run_folder(out: Path) -> Path:
    """Return the folder of a run: best.pt -> best.run."""
    return out.with_suffix(".run")


def run_training(
    caches: Sequence[Path], out: Path, config: TrainConfig, hooks: Hooks, *, strict_splits: bool = False
) -> RunResult:
    """Train, and write what happens as it happens.

    `out` is the epoch with the lowest validation loss so far; the folder beside it gets
    `config.json`, `metrics.csv`, `curves.png` and `last.pt`. Every file is replaced in one step.

    Args:
        caches: The cache, or several that are used as one.
        out: Checkpoint to write.
        config: What to do.
        hooks: Where else to report to.
        strict_splits: Refuse a cache in which clips look like clips of another split.

    Returns:
        How it ended.

    Raises:
        CacheError: The cache cannot be used.
        InputError: It is not what the config or `strict_splits` needs.
        OSError: The disk is full or not writable; the last good checkpoint is untouched.
    """
    with open_caches(caches) as reader:
        check_config(reader, config)  # before anything is written
        leaks = find_leaks(reader)
        hooks.on_leaks(leaks)
        if strict_splits and len(leaks.pairs):
            raise InputError(
                f"{reader.name}: {leaks.in_words}, expected none with --strict-splits. See them: vidcache leaks CACHE; "
                "keep them together: vidcache split CACHE --near-duplicates group"
            )
        folder = run_folder(out)
        folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "caches": [str(path) for path in caches],
            "fingerprint": reader.fingerprint,
            "split_hash": reader.split_hash,
        }
        text = json.dumps({**facts, "config": dataclasses.asdict(config)}, indent=2)
        write_text_atomically(folder / "config.json", text + "\n")
        results: list[EpochResult] = []

        def on_epoch(result: EpochResult, checkpoint: Callable[[bool], Checkpoint]) -> None:
            results.append(result)
            # The checkpoint first: metrics.csv never names a best epoch that best.pt does not hold.
            if result.is_best:
                checkpoint(False).save(out)
            checkpoint(True).save(folder / "last.pt")
            write_text_atomically(folder / "metrics.csv", metrics_csv(results))
            draw_curves(results, folder / "curves.png")
            hooks.on_epoch(result, checkpoint)

        return train(reader, config, dataclasses.replace(hooks, on_epoch=on_epoch))


def metrics_csv(results: list[EpochResult]) -> str:
    """Return metrics.csv: one line per epoch, the fields of `EpochResult`."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in dataclasses.fields(EpochResult)], lineterminator="\n")
    table.writeheader()
    for result in results:
        row = dataclasses.asdict(result)
        table.writerow({name: int(value) if name == "is_best" else value for name, value in row.items()})
    return text.getvalue()
