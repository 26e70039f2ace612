"""`videval`: options in, numbers and files out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from vidcache import cli
from vidcache.cli import option
from vidcache.console import Progress, SafeConsole
from vidcache.errors import VidcacheError
from vidcache.outputs import PAGE, PICTURE, begins, claim_folder
from vidcache.text import printable

if TYPE_CHECKING:  # torch takes 2 s to import: not for --help
    from vidcache.cache.reader import Reader
    from vidcache.checkpoint import Checkpoint
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
_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_SPLIT = click.Choice(["train", "val", "test"])
_TTA = click.Choice(["none", "flip"])
_VIEWS = "Average predictions over N temporal views (models trained with fewer frames)."
_COMPARE = "Another checkpoint to compare with, on the same clips."
_BESIDE = "best.eval beside best.pt"


@click.command(cls=cli.Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("caches", metavar="CACHE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@option("--ckpt", group="Model", type=_FILE, default="best.pt", help="Checkpoint of vidtrain.")
@option("--compare", group="Model", metavar="CKPT", type=_FILE, help=_COMPARE)
@option("--split", group="Data", type=_SPLIT, default="test", help="Split to evaluate.")
@option("--tta", group="Data", type=_TTA, default="none", help="flip: average with the mirror image.")
@option("--views", "num_views", group="Data", type=click.IntRange(1), default=1, help=_VIEWS)
@option("--batch-size", group="Data", type=click.IntRange(1), default=16, help="Clips per batch.")
@cli.device_option()
@cli.seed_option(help="Random seed of the bootstrap.")
@option("--out", envvar="VIDCACHE_EVAL_OUT", type=_FOLDER, show_default=_BESIDE, help="Folder of the results.")
@click.option("--explain", is_flag=True, help="Show the evidence for each mistake in the report (Grad-CAM).")
@option("--verify", group="Data", is_flag=True, help="Compare each clip with its hash.")
@click.option("--allow-mismatch", is_flag=True, help="Accept a cache with other content or another split.")
@cli.version_option()
@cli.verbosity_options()
@cli.json_option()
def main(
    caches: tuple[Path, ...],
    ckpt: Path,
    compare: Path | None,
    out: Path | None,
    explain: bool,
    allow_mismatch: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Evaluate a checkpoint on the test clips of CACHE; report.html, metrics.json and more go to best.eval/.

    Several caches of the same shape and classes are used as one. If the folder cannot be written, the numbers are
    printed all the same, and the exit code is 1.

    \b
    videval cache.h5 --ckpt best.pt
    videval cache.h5 --ckpt best.pt --compare other.pt
    """
    folder = claim_folder(out or ckpt.with_suffix(".eval"), FILES, [*caches, ckpt, *([compare] if compare else [])])

    from vidcache.cache.reader import open_caches
    from vidcache.eval.evaluate import EvalOptions, choose_views, evaluate, predict_split
    from vidcache.eval.inference import is_of
    from vidcache.eval.intervals import compare as compare_predictions
    from vidcache.eval.report.files import Subject, changed_clips, read_run_log, result_files, write_results
    from vidcache.eval.report.plots import explainer

    values |= {"device": cli.choose_device(values["device"]), "flip": values.pop("tta") == "flip"}
    options = EvalOptions(**values)
    where = printable(ckpt)
    changed: list[dict[str, str]] = []
    failure: OSError | None = None
    with open_caches(caches) as reader, Progress(cli.progress_console(), "loading", "clips") as progress:
        checkpoint, model = _load(ckpt, reader, options.device, allow_mismatch)
        other = _load(compare, reader, options.device, allow_mismatch) if compare else None
        choose_views(checkpoint, options, where)  # before the work
        if compare and other:
            choose_views(other[0], options, printable(compare))
        progress.start_phase("predicting", "clips")
        evaluation = evaluate(reader, checkpoint, options, model, where, progress.update)
        summary = {
            "cache": reader.name,
            "checkpoint": where,
            "fingerprint": reader.fingerprint,
            "split_hash": reader.split_hash,
            "epoch": checkpoint.epoch,
            **evaluation.summary,
        }
        if compare and other:
            progress.start_phase("predicting with the other", "clips")
            predictions = predict_split(reader, *other, options, printable(compare), progress.update)
            names = where, printable(compare)
            comparison = compare_predictions(evaluation.predictions, predictions, names, seed=options.seed)
            foreign = [name for name, c in zip(names, (checkpoint, other[0]), strict=True) if not is_of(c, reader)]
            if foreign:
                comparison["conclusion"] += f" But {' and '.join(foreign)} may have been trained on these clips."
            changed = changed_clips(reader, evaluation.predictions, predictions)
            summary["comparison"] = comparison
        summary["report"] = printable(folder / "report.html")
        progress.start_phase("writing the report")
        log = read_run_log(ckpt, checkpoint)
        commands = tuple(filter(None, (printable(log.command), cli.command_line())))
        subject = Subject(reader, checkpoint, where, log, commands, mismatch=not is_of(checkpoint, reader))
        draw = explainer(model, checkpoint, options.device) if explain else None
        files = result_files(subject, evaluation, summary, changed, draw)
        try:  # rendered before anything is written: no new numbers beside an old page
            write_results(folder, files)
        except OSError as error:
            failure, summary["report"] = error, None
    if as_json:
        cli.echo_json(summary)
    else:
        _show(SafeConsole(), summary)
    if failure:
        raise VidcacheError(
            f"{printable(folder)}: the report cannot be written ({failure.strerror}). Choose another folder with --out"
        )


def _load(path: Path, reader: "Reader", device: str, allow_mismatch: bool) -> tuple["Checkpoint", "R3D18"]:
    from vidcache.checkpoint import Checkpoint
    from vidcache.eval.inference import check_match, load_model

    checkpoint = Checkpoint.load(path)
    check_match(checkpoint, reader, printable(path), allow_mismatch=allow_mismatch)
    return checkpoint, load_model(checkpoint, printable(path), device)


def _show(console: SafeConsole, summary: dict[str, Any]) -> None:
    from vidcache.eval.evaluate import describe_leaks
    from vidcache.eval.metrics import describe_calibration

    table = Table("class", "clips", "correct", "accuracy", "95 % interval")
    for row in summary["per_class"]:
        accuracy, interval = "", "no clips"
        if row["num_clips"]:
            accuracy, interval = f"{row['accuracy']:.1%}", f"{row['low']:.1%} to {row['high']:.1%}"
        interval += ", too few to claim" if row["too_few_to_claim"] else ""
        table.add_row(Text(row["class"]), str(row["num_clips"]), str(row["num_correct"]), accuracy, interval)
    console.print(table)
    comparison = summary.get("comparison")
    lines = {
        "clips": f"{summary['num_clips']} of the {summary['split']} split",
        "accuracy": f"{_interval(summary, 'accuracy', 'accuracy')}; 95 % intervals",
        "top-5": _interval(summary, "top5_accuracy", "top5") if summary["top5_low"] is not None else "",
        "balanced": f"{_interval(summary, 'balanced_accuracy', 'balanced')}; mean over classes",
        "macro F1": f"{summary['macro_f1']:.3f} ({summary['macro_f1_low']:.3f} to {summary['macro_f1_high']:.3f})",
        "baseline": f"{summary['majority_fraction']:.1%} by always predicting the most frequent class",
        "calibration": describe_calibration(summary["calibration"]),
        "confusions": "; ".join(summary["top_mistakes"][:3]) or "none",
        "duplicates": describe_leaks(summary),
        "other": f"{comparison['second']}: {_interval(comparison, 'second_accuracy', 'second')}" if comparison else "",
        "compared": comparison["conclusion"] if comparison else "",
        "report": summary["report"] or "not written",
    }
    for name, value in lines.items():
        if value:
            console.print(Text(f"{name:11} {value}"), soft_wrap=True)


def _interval(values: dict[str, Any], name: str, prefix: str) -> str:
    return f"{values[name]:.1%} ({values[f'{prefix}_low']:.1%} to {values[f'{prefix}_high']:.1%})"
