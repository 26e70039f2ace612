"""`videval`: options in, numbers and files out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from vidcache.cli import (
    Command,
    choose_device,
    command_line,
    echo_json,
    json_option,
    option,
    progress_console,
    verbosity_options,
    version_option,
)
from vidcache.console import Progress, SafeConsole, echo
from vidcache.errors import VidcacheError
from vidcache.files import write_text_atomically
from vidcache.outputs import PAGE, PICTURE, begins, claim_folder, why_not_writable
from vidcache.text import printable, to_csv

if TYPE_CHECKING:  # torch takes 2 s to import: not for --help
    from vidcache.cache.reader import Reader
    from vidcache.checkpoint import Checkpoint
    from vidcache.eval.evaluate import Evaluation
    from vidcache.model import R3D18

FILES = {
    "metrics.json": begins("the metrics of an evaluation", b'{\n  "cache": '),
    "per_class.csv": begins("the classes of an evaluation", b"class,num_clips,"),
    "predictions.csv": begins("the predictions of an evaluation", b"path,true,class1,"),
    "changed.csv": begins("the comparison of an evaluation", b"path,true,first,second,"),
    "confusion.png": PICTURE,
    "per_class.png": PICTURE,
    "report.html": PAGE,
}


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("caches", metavar="CACHE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@option("--ckpt", type=click.Path(path_type=Path, dir_okay=False), default="best.pt", help="Checkpoint of vidtrain.")
@option(
    "--compare",
    metavar="CKPT",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Another checkpoint: is it better on the same clips?",
)
@option("--split", type=click.Choice(["train", "val", "test"]), default="test", help="Which clips.")
@option(
    "--tta", type=click.Choice(["none", "flip"]), default="none", help="flip: average each clip and its mirror image."
)
@option(
    "--views",
    "num_views",
    type=click.IntRange(1),
    default=1,
    help="Average so many shifted choices of frames, of a model that sees fewer than a clip has.",
)
@option("--batch-size", type=click.IntRange(1), default=16, help="Clips at a time.")
@option("--device", default=None, show_default="cuda if there is one, else cpu", help="cpu, cuda, cuda:1, ...")
@option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Of the bootstrap.")
@option(
    "--out",
    envvar="VIDCACHE_EVAL_OUT",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    show_default="best.eval beside best.pt",
    help="Folder of the results.",
)
@click.option("--explain", is_flag=True, help="Show in the report where the mistakes come from (Grad-CAM).")
@option("--verify", is_flag=True, help="Compare each clip with its hash.")
@click.option("--allow-mismatch", is_flag=True, help="Accept a cache with other content or another split.")
@version_option()
@verbosity_options()
@json_option()
def main(
    caches: tuple[Path, ...],
    ckpt: Path,
    compare: Path | None,
    split: str,
    tta: str,
    num_views: int,
    batch_size: int,
    device: str | None,
    seed: int,
    out: Path | None,
    explain: bool,
    allow_mismatch: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Evaluate a checkpoint on the test clips of CACHE; report.html, metrics.json and more go to best.eval/.

    Several caches of the same shape and classes are used as one. Where the folder cannot be written, the numbers are
    printed all the same, and the exit code is 1.

    \b
    videval cache.h5 --ckpt best.pt
    videval cache.h5 --ckpt best.pt --compare other.pt
    """
    read = [*caches, ckpt, *([compare] if compare else [])]
    folder = claim_folder(out or ckpt.with_suffix(".eval"), FILES, read)

    from vidcache.cache.reader import open_caches
    from vidcache.eval.evaluate import EvalOptions, check_views, evaluate, predict_split
    from vidcache.eval.inference import is_of
    from vidcache.eval.intervals import compare as compare_predictions
    from vidcache.eval.report.build import Subject, read_history, render_report, summarise, summarise_comparison
    from vidcache.eval.report.files import changed_clips, write_results
    from vidcache.eval.report.plots import explainer

    chosen = choose_device(device)
    options = EvalOptions(split, chosen, batch_size, num_views, tta == "flip", verify, seed)
    where = printable(ckpt)
    comparison, changed = None, []
    with open_caches(caches) as reader, Progress(progress_console(), "loading", "clips") as shown:
        checkpoint, model = _load(ckpt, reader, chosen, allow_mismatch)
        other = _load(compare, reader, chosen, allow_mismatch) if compare else None
        check_views(checkpoint, options, where)  # before the work, as everything that can be refused
        if compare and other:
            check_views(other[0], options, printable(compare))
        failure = why_not_writable(folder)
        if failure:
            echo(f"Warning: {_not_written(folder, failure)}, only printed", err=True)
        shown.start_phase("predicting", "clips")
        found = evaluate(reader, checkpoint, model, options, where, shown.update)
        summary = {
            "cache": reader.name,
            "checkpoint": where,
            "fingerprint": reader.fingerprint,
            "split_hash": reader.split_hash,
            "epoch": checkpoint.epoch,
            **summarise(reader, found),
        }
        if compare and other:
            shown.start_phase("predicting with the other", "clips")
            predictions = predict_split(reader, *other, options, printable(compare), shown.update)
            first, second = _names(ckpt, compare)
            strangers = [name for name, one in ((first, checkpoint), (second, other[0])) if not is_of(one, reader)]
            comparison = summarise_comparison(
                compare_predictions(found.predictions, predictions, seed=seed),
                first,
                second,
                f"But {' and '.join(strangers)} may have been trained on these clips." if strangers else "",
            )
            changed = changed_clips(reader, found.predictions, predictions)
            summary["comparison"] = comparison
        summary["report"] = None if failure else printable(folder / "report.html")
        history = read_history(ckpt, checkpoint)
        subject = Subject(
            reader,
            checkpoint,
            where,
            history,
            commands=tuple(filter(None, (printable(history.command), command_line()))),
            mismatch=not is_of(checkpoint, reader),
        )
        shown.start_phase("writing the report")
        page = render_report(
            subject,
            found,
            summary,
            explain=explainer(model, checkpoint, chosen) if explain else None,
            comparison=comparison,
            changed=changed,
        )
        # Rendered before anything is written: no new numbers beside an old page.
        try:
            if not failure:
                write_results(folder, summary, reader, found.predictions, found.metrics)
                changed_csv = folder / "changed.csv"
                if comparison:
                    header = ["path", "true", "first", "second", "change"]
                    write_text_atomically(changed_csv, to_csv(header, [list(row.values()) for row in changed]))
                else:
                    changed_csv.unlink(missing_ok=True)  # of an earlier comparison
                write_text_atomically(folder / "report.html", page)
        except OSError as error:
            failure, summary["report"] = error, None
    if as_json:
        echo_json(summary)
    else:
        _show(SafeConsole(), summary, found)
    if failure:
        raise VidcacheError(f"{_not_written(folder, failure)}. Choose another folder with --out")


def _not_written(folder: Path, failure: OSError) -> str:
    return f"{printable(folder)}: the report cannot be written ({failure.strerror})"


def _load(path: Path, reader: "Reader", device: str, allow_mismatch: bool) -> tuple["Checkpoint", "R3D18"]:
    from vidcache.checkpoint import Checkpoint
    from vidcache.eval.inference import check_match, load_model

    checkpoint = Checkpoint.load(path)
    check_match(checkpoint, reader, printable(path), allow_mismatch=allow_mismatch)
    return checkpoint, load_model(checkpoint, printable(path), device)


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Name two checkpoints as shortly as tells them apart."""
    if first.name != second.name:
        return printable(first.name), printable(second.name)
    return printable(first), printable(second)


def _show(console: SafeConsole, summary: dict[str, Any], found: "Evaluation") -> None:
    table = Table("class", "clips", "right", "accuracy", "95 % interval")
    for row in summary["per_class"]:
        interval = f"{row['low']:.1%} to {row['high']:.1%}" if row["num_clips"] else "no clips"
        interval += ", too few to claim" if row["too_few_to_claim"] else ""
        accuracy = f"{row['accuracy']:.1%}" if row["num_clips"] else ""
        table.add_row(Text(row["class"]), str(row["num_clips"]), str(row["num_correct"]), accuracy, interval)
    console.print(table)
    lines = {
        "clips": f"{summary['num_clips']} of the {summary['split']} split",
        "accuracy": f"{_span(summary, 'accuracy')}; 95 % intervals",
        **({"top-5": _span(summary, "top5", "top5_accuracy")} if summary["top5_low"] is not None else {}),
        "balanced": f"{_span(summary, 'balanced', 'balanced_accuracy')}; mean over classes",
        "macro F1": f"{summary['macro_f1']:.3f} ({summary['macro_f1_low']:.3f} to {summary['macro_f1_high']:.3f})",
        "majority": f"{summary['majority_fraction']:.1%} would be right by always saying the most frequent class",
        "sureness": found.calibration.in_words,
        "confused": "; ".join(summary["top_mistakes"][:3]) or "nothing",
        "leaks": found.cleanliness.in_words,
        **_compared(summary.get("comparison")),
        "report": summary["report"] or "not written",
    }
    for name, value in lines.items():
        console.print(Text(f"{name:9} {value}"), soft_wrap=True)


def _compared(comparison: dict[str, Any] | None) -> dict[str, str]:
    if not comparison:
        return {}
    return {
        "other": f"{comparison['second']}: {_span(comparison, 'second', 'second_accuracy')}",
        "compared": comparison["conclusion"],
    }


def _span(summary: dict[str, Any], prefix: str, name: str = "") -> str:
    low, high = summary[f"{prefix}_low"], summary[f"{prefix}_high"]
    return f"{summary[name or prefix]:.1%} ({low:.1%} to {high:.1%})"
