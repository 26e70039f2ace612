"""`vidcache info`, `vidcache verify` and `vidcache leaks`."""

from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table
from rich.text import Text

from vidcache.cache.format import NEAR_GROUP, Split, Status
from vidcache.cache.leakage import draw_leaks, find_leaks
from vidcache.cache.reader import CacheReader, open_caches
from vidcache.cli import (
    Command,
    FiniteRange,
    beside,
    check_png,
    echo_json,
    json_option,
    option,
    progress_console,
    verbosity_options,
)
from vidcache.console import Progress, SafeConsole, echo
from vidcache.errors import CacheError, VidcacheError
from vidcache.near_duplicates import NEAR
from vidcache.outputs import PICTURE, claim
from vidcache.spec import Spec
from vidcache.text import plural, printable

_MAX_REASONS = 20  # of failures, the most frequent
_MANY = 20_000  # clips that take seconds to compare


@click.command(cls=Command)
@click.argument("cache", type=click.Path(path_type=Path))
@json_option()
def info(cache: Path, as_json: bool) -> None:
    """Show what is in CACHE: spec, classes, splits, failures, how it was made.

    \b
    vidcache info cache.h5
    """
    with CacheReader(cache) as reader:
        facts = describe(reader)
    if as_json:
        echo_json(facts)
        return
    console, spec = SafeConsole(), facts["spec"]
    splits = {name: line for name, line in facts["splits"].items() if name != "unused" or any(line.values())}
    table = Table("class", *splits, "clips")
    for name, count in facts["classes"].items():
        table.add_row(Text(name), *(str(line[name]) for line in splits.values()), str(count))
    table.add_section()
    table.add_row("all", *(str(sum(line.values())) for line in splits.values()), str(facts["num_clips"]))
    console.print(table)
    lines = {
        "cache": facts["cache"],
        "clips": f"{facts['num_clips']:,} of {plural(facts['num_videos'], 'video')} "
        f"({facts['num_failed']} failed, {facts['num_damaged']} damaged)",
        "spec": f"{Spec.from_dict(spec)}, {spec['sampling']}, {spec['scaling']}",
        "padded": f"{plural(facts['num_padded'], 'clip')} with fewer than {spec['num_frames']} frames",
        "fingerprint": facts["fingerprint"],
        "split": facts["split_hash"],
        **{name.replace("_", " "): value for name, value in facts["attributes"].items()},
    }
    failures = [("failed", f"{count} {reason}") for reason, count in facts["failures"].items()]
    for name, value in [*lines.items(), *failures]:
        console.print(Text(f"{name:16} {printable(str(value))}"), soft_wrap=True)


def describe(reader: CacheReader) -> dict[str, Any]:
    """Return the facts of a cache as JSON-ready values; splits are {split: {class: clips}}."""
    status, good = reader.columns["status"], reader.rows()
    classes = [printable(name) for name in reader.classes]

    def count(rows: np.ndarray[Any, Any]) -> dict[str, int]:
        return dict(zip(classes, np.bincount(reader.labels[rows], minlength=len(classes)).tolist(), strict=True))

    errors = reader.columns["error"][status == Status.FAILED].tolist()
    reasons = Counter(printable(error.split(b":")[0]) for error in errors)
    return {
        "cache": reader.name,
        "fingerprint": reader.fingerprint,
        "split_hash": reader.split_hash,
        "num_videos": len(reader),
        "num_clips": len(good),
        "num_failed": int((status == Status.FAILED).sum()),
        "num_damaged": int((status == Status.DAMAGED).sum()),
        "num_padded": int((reader.columns["num_real"][good] < reader.spec.num_frames).sum()),
        "classes": count(good),
        "spec": reader.spec.to_dict(),
        "splits": {name.lower(): count(reader.rows(name)) for name in Split.__members__},
        "failures": dict(sorted(reasons.most_common(_MAX_REASONS))),
        "attributes": {k: v for k, v in reader.attributes.items() if k not in ("format", "sampling", "scaling")},
    }


@click.command(cls=Command)
@click.argument("cache", type=click.Path(path_type=Path))
@verbosity_options()
@json_option()
def verify(cache: Path, as_json: bool) -> None:
    """Check every structure and every clip of CACHE; exit code 4 if anything is wrong.

    \b
    vidcache verify cache.h5
    """
    try:
        with CacheReader(cache) as reader, Progress(progress_console(), "checking", "clips") as shown:
            good, bad = reader.rows(), []
            for done, row in enumerate(good.tolist(), 1):
                if len(reader.damaged_rows([row])):
                    path = printable(reader.path_of(row))
                    bad.append({"row": row, "path": path, "problem": "the clip does not match its hash"})
                shown.update(done, len(good), len(bad))
    except CacheError as error:
        if as_json:
            echo_json({"ok": False, "num_checked": 0, "bad": [{"row": None, "path": None, "problem": str(error)}]})
        raise
    if as_json:
        echo_json({"ok": not bad, "num_checked": len(good), "bad": bad})
    else:
        for entry in bad:
            echo(f"row {entry['row']} ({entry['path']}): {entry['problem']}")
        echo(f"{printable(cache)}: {plural(len(good), 'clip')} checked, {len(bad)} bad")
    if bad:
        raise CacheError(
            f"{printable(cache)}: {len(bad)} of {plural(len(good), 'clip')} do not match their hash. "
            "Restore a copy, or decode them again: vidcache build RAW CACHE --verify-sources"
        )


@click.command(cls=Command)
@click.argument("caches", metavar="CACHE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@option(
    "--out",
    envvar="VIDCACHE_LEAKS_OUT",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=check_png,
    default=None,
    show_default="cache.leaks.png beside cache.h5",
    help="Picture of the nearest pairs.",
)
@option("--num-pictures", type=click.IntRange(1, 50), default=8, help="Number of pairs in the picture.")
@option("--num-pairs", type=click.IntRange(0), default=100, help="Largest number of pairs to list.")
@option("--max-distance", type=FiniteRange(0, 0.1), default=NEAR, help="Largest distance of a pair; 0 is the same.")
@verbosity_options()
@json_option()
def leaks(
    caches: tuple[Path, ...],
    out: Path | None,
    num_pictures: int,
    num_pairs: int,
    max_distance: float,
    as_json: bool,
) -> None:
    """List pairs of clips of CACHE that look alike and are in different splits, nearest first.

    Where the picture cannot be written, they are printed all the same, and the exit code is 1.

    \b
    vidcache leaks cache.h5
    """
    picture = claim(out or beside(caches[0], ".leaks.png"), PICTURE, caches)
    failure: OSError | None = None
    with open_caches(caches) as reader, Progress(progress_console(), "comparing clips") as shown:
        if isinstance(reader, CacheReader) and NEAR_GROUP not in reader.columns and len(reader) > _MANY:
            echo(f"{reader.name}: stores no near-duplicates; vidcache split CACHE adds them", err=True)
        result = find_leaks(reader, max_distance)
        total = len(result.pairs)
        pairs: list[dict[str, Any]] = [
            {
                "distance": round(distance, 6),
                "splits": [Split(result.splits[row]).name.lower() for row in rows],
                "classes": [printable(reader.classes[reader.labels[row]]) for row in rows],
                "paths": [printable(reader.path_of(row)) for row in rows],
            }
            for rows, distance in zip(result.pairs[:num_pairs].tolist(), result.distances.tolist(), strict=False)
        ]
        try:
            if total:
                shown.start_phase("drawing")
                draw_leaks(reader, result, picture, num_pictures)
        except OSError as error:
            failure = error
    drawn = printable(picture) if total and not failure else None
    if as_json:
        echo_json({"cache": reader.name, "num_pairs": total, "pairs": pairs, "picture": drawn})
    else:
        for pair in pairs:
            names = "  ".join(f"{split:5}  {path}" for split, path in zip(pair["splits"], pair["paths"], strict=True))
            echo(f"{pair['distance']:.6f}  {names}")
        if total > len(pairs):
            echo(f"and {total - len(pairs):,} more: --num-pairs")
        echo(f"{reader.name}: {result.in_words}")
        if drawn:
            echo(f"{drawn}: the nearest {min(num_pictures, total)} side by side")
    if failure:
        raise VidcacheError(
            f"{printable(picture)}: the picture cannot be written ({failure.strerror}). Choose another place with --out"
        )
