"""`videval`: options in, numbers and files out."""

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vidcache.cli import Command, choose_device, echo_json, json_option, option
from vidcache.errors import InputError
from vidcache.files import write_text_atomically
from vidcache.text import printable

if TYPE_CHECKING:  # torch takes 2 s to import: not for --help
    from vidcache.cache.reader import Reader
    from vidcache.eval.cleanliness import Cleanliness
    from vidcache.eval.evaluate import Predictions
    from vidcache.eval.metrics import Metrics


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("caches", metavar="CACHE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@option("--ckpt", type=click.Path(path_type=Path, dir_okay=False), default="best.pt", help="Checkpoint of vidtrain.")
@option("--split", type=click.Choice(["train", "val", "test"]), default="test", help="Which clips.")
@option("--batch-size", type=click.IntRange(1), default=16, help="Clips at a time.")
@option("--device", default=None, show_default="cuda if there is one, else cpu", help="cpu, cuda, cuda:1, ...")
@option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    show_default="best.eval beside best.pt",
    help="Folder of the results.",
)
@option("--verify", is_flag=True, help="Compare each clip with its hash.")
@click.option("--allow-mismatch", is_flag=True, help="Accept a cache with other content or another split.")
@json_option()
def main(
    caches: tuple[Path, ...],
    ckpt: Path,
    split: str,
    batch_size: int,
    device: str | None,
    out: Path | None,
    allow_mismatch: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Evaluate a checkpoint on the test clips of CACHE; results go to best.eval/.

    Several caches of the same shape and classes are used as one.

    \b
    videval cache.h5 --ckpt best.pt
    """
    from vidcache.cache.joined import open_caches
    from vidcache.cache.stream import stream_batches
    from vidcache.checkpoint import Checkpoint
    from vidcache.eval.cleanliness import check_split
    from vidcache.eval.evaluate import predict
    from vidcache.eval.loading import check_match, load_model
    from vidcache.eval.metrics import compute_metrics
    from vidcache.sampling import sample_indices

    where = printable(ckpt)
    with open_caches(caches) as reader:
        checkpoint = Checkpoint.load(ckpt)
        check_match(checkpoint, reader, where, allow_mismatch=allow_mismatch)
        chosen = choose_device(device)
        model = load_model(checkpoint, where, chosen)
        rows = reader.rows(split)
        if not len(rows):
            raise InputError(f"{reader.name}: no {split} clips, expected at least one. Choose another --split")
        frames = sample_indices(reader.spec.num_frames, checkpoint.num_frames_used)
        predictions = predict(
            model, stream_batches(reader, rows, batch_size, frames=frames, device=chosen, verify=verify)
        )
        metrics = compute_metrics(predictions.labels, predictions.probabilities, reader.classes)
        cleanliness = check_split(reader, split, predictions)
        folder = out or ckpt.with_suffix(".eval")
        facts = {
            "cache": reader.name,
            "checkpoint": where,
            "fingerprint": reader.fingerprint,
            "split_hash": reader.split_hash,
            "epoch": checkpoint.epoch,
        }
        summary = {**summarise(split, metrics), **dataclasses.asdict(cleanliness), "report": printable(folder)}
        write_results(folder, {**facts, **summary}, reader, predictions, metrics)
    if as_json:
        echo_json(summary)
    else:
        _show(Console(), split, metrics, cleanliness, folder)


def summarise(split: str, metrics: "Metrics") -> dict[str, Any]:
    """Return the numbers as JSON-ready values."""
    return {
        "split": split,
        "num_clips": metrics.num_clips,
        "accuracy": metrics.accuracy,
        "accuracy_low": metrics.accuracy_low,
        "accuracy_high": metrics.accuracy_high,
        "top5_accuracy": metrics.top5_accuracy,
        "balanced_accuracy": metrics.balanced_accuracy,
        "macro_f1": metrics.macro_f1,
        "majority_fraction": metrics.majority_fraction,
        "per_class": [
            {
                "class": printable(result.class_name),
                "num_clips": result.num_clips,
                "num_correct": result.num_correct,
                "accuracy": None if result.num_clips == 0 else result.accuracy,
                "low": None if result.num_clips == 0 else result.low,
                "high": None if result.num_clips == 0 else result.high,
            }
            for result in metrics.per_class
        ],
    }


def write_results(
    folder: Path, summary: dict[str, Any], reader: "Reader", predictions: "Predictions", metrics: "Metrics"
) -> None:
    """Write metrics.json, per_class.csv, predictions.csv, confusion.png and per_class.png."""
    from vidcache.eval.metrics import TOP
    from vidcache.eval.pictures import draw_confusion, draw_per_class

    folder.mkdir(parents=True, exist_ok=True)
    values = {**summary, "confusion": metrics.confusion.tolist()}
    write_text_atomically(folder / "metrics.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    names = [printable(name) for name in reader.classes]
    per_class = [
        [row["class"], row["num_clips"], row["num_correct"], row["accuracy"], row["low"], row["high"]]
        for row in summary["per_class"]
    ]
    header = ["class", "num_clips", "num_correct", "accuracy", "low", "high"]
    write_text_atomically(folder / "per_class.csv", _csv(header, per_class))
    top = min(TOP, len(names))
    header = ["path", "true", *(f"{what}{k}" for k in range(1, top + 1) for what in ("class", "probability"))]
    table = []
    for row, label, probabilities in zip(
        predictions.rows.tolist(), predictions.labels.tolist(), predictions.probabilities, strict=True
    ):
        best = probabilities.argsort(kind="stable")[::-1][:top].tolist()
        said = [value for k in best for value in (names[k], f"{probabilities[k]:.6f}")]
        table.append([printable(reader.path_of(row)), names[label], *said])
    write_text_atomically(folder / "predictions.csv", _csv(header, table))
    title = (
        f"{summary['split']}: {metrics.num_correct} of {metrics.num_clips} right = {metrics.accuracy:.1%} "
        f"({metrics.accuracy_low:.1%} to {metrics.accuracy_high:.1%})"
    )
    draw_confusion(metrics, title, folder / "confusion.png")
    draw_per_class(metrics.per_class, title, folder / "per_class.png")


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _show(console: Console, split: str, metrics: "Metrics", cleanliness: "Cleanliness", folder: Path) -> None:
    table = Table("class", "clips", "right", "accuracy", "95 % interval")
    for result in metrics.per_class:
        interval = f"{result.low:.1%} to {result.high:.1%}" if result.num_clips else "no clips"
        accuracy = f"{result.accuracy:.1%}" if result.num_clips else ""
        table.add_row(
            Text(printable(result.class_name)), str(result.num_clips), str(result.num_correct), accuracy, interval
        )
    console.print(table)
    lines = {
        "clips": f"{metrics.num_clips} of the {split} split",
        "accuracy": f"{metrics.accuracy:.1%} ({metrics.accuracy_low:.1%} to {metrics.accuracy_high:.1%})",
        "top-5": f"{metrics.top5_accuracy:.1%}",
        "balanced": f"{metrics.balanced_accuracy:.1%} (mean over classes)",
        "macro F1": f"{metrics.macro_f1:.3f}",
        "majority": f"{metrics.majority_fraction:.1%} would be right by always saying the most frequent class",
        "leaks": cleanliness.in_words,
        "results": printable(folder),
    }
    for name, value in lines.items():
        console.print(Text(f"{name:9} {value}"), soft_wrap=True)
