"""What a command may replace: nothing but what it writes itself. Links, locks, and a run that is kept."""

import dataclasses
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result

from tests.helpers import TOOLS, make_cache, make_raw, tiny_models
from tests.tiny_model import TinyModel
from vidcache import cli, outputs
from vidcache.cache.lock import build_folder
from vidcache.cache.reader import CacheReader
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError, InterruptedRunError, LockedError, VidcacheError
from vidcache.eval.cli import main as videval
from vidcache.eval.predict_cli import main as vidpredict
from vidcache.files import write_atomically, write_text_atomically
from vidcache.plotting import to_png
from vidcache.preprocess.build import build_cache
from vidcache.preprocess.demo import render_demo
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.split.config import SplitOverrides
from vidcache.preprocess.split.resplit import split_cache
from vidcache.spec import Spec
from vidcache.train import loop, run_dir
from vidcache.train.cli import main as vidtrain
from vidcache.train.config import TrainConfig
from vidcache.train.run import run_training

SPEC = Spec(4, 16, 16)
QUICK = ["--weights", "none", "--epochs", "1", "--min-epochs", "1", "--amp", "off", "--device", "cpu"]
CONFIG = TrainConfig(weights="none", freeze="none", epochs=1, min_epochs=1, amp="off")
BUILD = BuildOptions(spec=SPEC, workers=1)
THESIS = b"\x00my thesis, five years of work"


def call(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def train(folder: Path, out: str, *options: object) -> Result:
    return call(vidtrain, folder / "learned.h5", "--out", folder / out, *options)


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder: bytes of files, targets of links; no locks."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or path.is_file()) and path.name != "cache.h5.lock"
    }


@pytest.fixture(autouse=True)
def _tiny() -> Iterator[None]:
    with tiny_models():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw/, cache.h5 of it, learned.h5, best.pt and best.run/."""
    folder = tmp_path_factory.mktemp("made")
    make_raw(folder / "raw", {"a": 6, "b": 6})
    build_cache(folder / "raw", folder / "cache.h5", BUILD)
    make_cache(folder / "learned.h5", {"a": 12, "b": 12}, spec=SPEC, learnable=True)
    with tiny_models():
        run_training([folder / "learned.h5"], folder / "best.pt", CONFIG)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, that a test may change."""
    shutil.copytree(made, tmp_path / "w")
    return tmp_path / "w"


# --- every command that writes, over what is not its own --------------------------------------------

# Command, its arguments in the folder of `made`, and what of them is the output.
FILES: dict[str, tuple[click.Command, str]] = {
    "build": (cli.main, "build raw OUT --num-frames 4 --size 16 --workers 1"),
    "build --overwrite": (cli.main, "build raw OUT --num-frames 4 --size 16 --workers 1 --overwrite"),
    "vidtrain": (vidtrain, f"learned.h5 --out OUT {' '.join(QUICK)}"),
    "vidtrain --overwrite": (vidtrain, f"learned.h5 --out OUT --overwrite {' '.join(QUICK)}"),
    "features": (vidtrain, f"learned.h5 --out new.pt --cache-features 1 --freeze stem --feature-file OUT {' '.join(QUICK)}"),
    "preview": (cli.main, "preview learned.h5 --out OUT.png"),
    "leaks": (cli.main, "leaks learned.h5 --max-distance 0.1 --out OUT.png"),
    "export": (cli.main, "export best.pt --format torch-export --out OUT.pt2"),
}  # fmt: skip
FOLDERS: dict[str, tuple[click.Command, str]] = {
    "videval": (videval, "learned.h5 --ckpt best.pt --device cpu --out OUT"),
    "analyze": (cli.main, "analyze learned.h5 --out OUT"),
    "analyze RAW": (cli.main, "analyze raw --out OUT"),
    "vidpredict": (vidpredict, "raw --ckpt best.pt --device cpu --explain --out OUT"),
    "demo": (cli.main, "demo OUT"),
}
WRITES = {**FILES, **FOLDERS}


def run(name: str, folder: Path, out: object) -> Result:
    command, line = WRITES[name]
    words = (f"{out}{word.removeprefix('OUT')}" if word.startswith("OUT") else word for word in line.split())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return call(command, *words)


def ending(name: str) -> str:
    return next((word[3:] for word in WRITES[name][1].split() if word.startswith("OUT.")), "")


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("how", ["file", "symlink", "hard link"])
def test_a_file_of_another_kind_is_never_replaced(folder: Path, name: str, how: str) -> None:
    mine = folder / f"mine{ending(name)}"
    (folder / "thesis").write_bytes(THESIS)
    if how == "file":
        (folder / "thesis").rename(mine)
    elif how == "symlink":
        mine.symlink_to("thesis")
    else:
        os.link(folder / "thesis", mine)
    before = contents(folder)

    result = run(name, folder, "mine")

    assert result.exit_code in (2, 4, 5), result.output
    assert ("is not replaced. Choose another name" in result.stderr) or "is a file" in result.stderr
    assert before == contents(folder)


@pytest.mark.parametrize("kind", ["CACHE", "FEATURES", "CHECKPOINT", "EXPORT", "PICTURE", "PAGE"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a backup", b"<html>", "folder", "fifo"])
def test_no_kind_is_found_in_other_things(tmp_path: Path, kind: str, content: bytes | str) -> None:
    path = tmp_path / "x"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.mkdir() if content == "folder" else os.mkfifo(path)

    with pytest.raises(VidcacheError, match="is not replaced. Choose another name"):
        outputs.claim(path, getattr(outputs, kind))


@pytest.mark.parametrize("name", [name for name in FILES if not ending(name)])
@pytest.mark.parametrize("other", ["raw/a/a_0.mkv", "learned.h5", "best.pt", "cache.failures.csv"])
def test_no_input_and_nothing_of_another_command_is_replaced(folder: Path, name: str, other: str) -> None:
    if ("build" in name and other == "learned.h5") or ("vidtrain" in name and other == "best.pt"):
        pytest.skip("it is of the kind that this command writes")
    before = contents(folder)

    assert run(name, folder, other).exit_code in (2, 4, 5)

    assert before == contents(folder)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_of_other_things_is_left_alone(folder: Path, name: str, linked: bool) -> None:
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter1.tex").write_bytes(THESIS)
    if linked:
        (folder / "mine").symlink_to("thesis")
    before = contents(folder)

    result = run(name, folder, "mine" if linked else "thesis")

    assert 2 == result.exit_code
    assert ": is a folder of other things (" in result.stderr
    assert before == contents(folder)


@pytest.mark.parametrize(("name", "file"), [("videval", "report.html"), ("analyze", "videos.csv"), ("videval", "per_class.png")])  # fmt: skip
def test_a_foreign_file_in_a_folder_of_results_is_not_replaced(folder: Path, name: str, file: str) -> None:
    assert 0 == run(name, folder, "mine").exit_code
    (folder / "mine" / file).write_bytes(THESIS)
    before = contents(folder)

    assert 2 == run(name, folder, "mine").exit_code

    assert before == contents(folder)


@pytest.mark.parametrize("name", ["build", "build --overwrite", "preview", "leaks", "videval", "analyze"])
def test_what_a_command_has_written_it_writes_again(folder: Path, name: str) -> None:
    first = run(name, folder, "mine")
    second = run(name, folder, "mine")

    assert (0, 0) == (first.exit_code, second.exit_code), second.output


SPLIT = SplitOverrides(source="files", files=("new.failures.csv",))
HEADER = b"path,class,status,reason,split\n"


@pytest.mark.parametrize(
    ("there", "out", "changes", "message"),
    [
        ({}, "raw/c.h5", {}, r"c\.h5: lies in raw, which is only read\. Choose a place outside of it"),
        ({}, "raw/../raw/a/c.h5", {"overwrite": True}, r"c\.h5: lies in raw"),
        ({"inside": "raw/b"}, "inside/c.h5", {}, r"c\.h5: lies in raw"),
        ({"new.failures.csv": b"path,score\na,1\n"}, "new.h5", {}, r"begins with b'path,sco', not a list of failures"),
        ({"new.failures.csv": HEADER}, "new.h5", {"split": SPLIT}, r"new\.failures\.csv: is read by this command"),
        ({"loop.h5": "loop.h5"}, "loop.h5", {}, r"loop\.h5: is a link that leads to itself\. Choose another name"),
        ({"new.h5.lock": "lock"}, "new.h5", {}, r"new\.h5\.lock: is a link, not a lock file\. Rename it"),
    ],
)
def test_no_build_goes_where_something_else_is(
    folder: Path,
    there: dict[str, bytes | str],
    out: str,
    changes: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    for name, content in there.items():
        Path(name).symlink_to(content) if isinstance(content, str) else Path(name).write_bytes(content)
    before = contents(folder)

    with pytest.raises(VidcacheError, match=message):
        build_cache("raw", out, dataclasses.replace(BUILD, **changes))

    assert before == contents(folder)


def test_a_checkpoint_and_a_cache_in_each_others_place_are_named(folder: Path) -> None:
    swapped = call(videval, folder / "best.pt", folder / "learned.h5", "--device", "cpu")
    no_checkpoint = call(videval, folder / "learned.h5", "--ckpt", folder / "cache.h5", "--out", folder / "e")

    assert 4 == swapped.exit_code
    assert "best.pt: is a checkpoint, not a cache. Name a cache" in swapped.stderr
    assert 5 == no_checkpoint.exit_code
    assert "cache.h5: is a cache, not a checkpoint." in no_checkpoint.stderr


@pytest.mark.parametrize("command", ["info", "verify", "split", "analyze", "leaks", "preview"])
def test_no_advice_to_replace_a_file_that_is_no_cache(folder: Path, command: str) -> None:
    (folder / "notes.h5").write_bytes(THESIS)

    result = call(cli.main, command, folder / "notes.h5")

    assert 4 == result.exit_code
    assert "notes.h5: not a file of vidcache (it begins with b'\\x00my thes'). Name a cache" in result.stderr
    assert not [word for word in ("overwrite", "elete", "estore") if word in result.stderr]


@pytest.mark.pictures
def test_a_cut_checkpoint_is_still_one_and_a_picture_of_another_program_is_none(folder: Path) -> None:
    from matplotlib.figure import Figure

    os.truncate(folder / "best.pt", 3000)
    drawn = to_png(Figure(), 50)
    (folder / "ours.png").write_bytes(drawn)
    (folder / "holiday.png").write_bytes(drawn.replace(b"Software\0vidcache", b"Software\0camera!!"))
    torch.save({"weights": torch.zeros(3)}, folder / "other.pt")

    assert outputs.CHECKPOINT.is_at(folder / "best.pt")
    assert not outputs.CHECKPOINT.is_at(folder / "other.pt")
    assert outputs.PICTURE.is_at(folder / "ours.png")
    assert not outputs.PICTURE.is_at(folder / "holiday.png")


def test_demo_replaces_its_own_videos_and_refuses_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidcache.preprocess import demo

    monkeypatch.setattr(demo, "CLASSES", {"rise": 2})
    first = render_demo(tmp_path / "d", TOOLS)
    assert first == render_demo(tmp_path / "d", TOOLS)
    (tmp_path / "d" / "rise" / "mine.mp4").write_bytes(THESIS)

    with pytest.raises(InputError, match=r"d: is a folder of other things \(.*mine\.mp4\)"):
        render_demo(tmp_path / "d", TOOLS)


# --- links ---------------------------------------------------------------------------------------


def through_build(folder: Path, out: Path) -> None:
    build_cache(folder / "raw", out, BUILD)


def through_training(folder: Path, out: Path) -> None:
    run_training([folder / "learned.h5"], out, CONFIG)


def through_pictures(folder: Path, out: Path) -> None:
    assert 0 == call(cli.main, "preview", folder / "learned.h5", "--out", out).exit_code


@pytest.mark.parametrize("write", [through_build, through_training, through_pictures])
def test_a_link_is_written_through_also_where_it_leads_to_nothing(
    folder: Path, write: Callable[[Path, Path], None]
) -> None:
    (folder / "big").mkdir()
    link = folder / "here.png"
    link.symlink_to("big/there.png")

    write(folder, link)

    assert link.is_symlink()
    assert (folder / "big" / "there.png").is_file()
    assert not [path for path in folder.iterdir() if path.name.startswith(("here", ".here")) and path != link]


def test_an_older_cache_behind_a_link_is_replaced_and_the_link_stays(folder: Path) -> None:
    (folder / "big").mkdir()
    (folder / "cache.h5").rename(folder / "big" / "c.h5")
    (folder / "cache.h5").symlink_to("big/c.h5")
    make_raw(folder / "more" / "raw", {"a": 7, "b": 6})

    assert 13 == build_cache(folder / "more" / "raw", folder / "cache.h5", BUILD).num_videos
    assert not split_cache(folder / "cache.h5", SplitOverrides(seed=5)).up_to_date

    assert (folder / "cache.h5").is_symlink()
    with CacheReader(folder / "big" / "c.h5") as reader:
        assert 13 == len(reader)
    assert not list(folder.glob(".cache.h5*"))


def test_two_names_of_one_cache_meet_the_same_lock(folder: Path) -> None:
    (folder / "link.h5").symlink_to("new.h5")

    def second(*_: object) -> None:
        with pytest.raises(LockedError, match="another build is writing it"):
            build_cache(folder / "raw", folder / "link.h5", BUILD)

    build_cache(folder / "raw", folder / "new.h5", BUILD, second)

    assert build_cache(folder / "raw", folder / "link.h5", BUILD).up_to_date


def test_a_temporary_file_is_never_what_a_link_of_its_name_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "randbits", lambda _: 7)
    (tmp_path / "thesis").write_bytes(THESIS)
    (tmp_path / ".a.txt.7.tmp").symlink_to("thesis")

    with pytest.raises(FileExistsError):
        write_text_atomically(tmp_path / "a.txt", "new")

    assert THESIS == (tmp_path / "thesis").read_bytes()


def test_a_scratch_folder_is_not_used_for_a_link(tmp_path: Path) -> None:
    """What it leads to may be on another disk."""
    for name in ("there", "scratch"):
        (tmp_path / name).mkdir()
    (tmp_path / "a.txt").symlink_to("there/a.txt")
    seen = []

    write_atomically(tmp_path / "a.txt", lambda file: seen.append(Path(file.name).parent), tmp_path / "scratch")

    assert [tmp_path / "there"] == seen


# --- build folders that somebody else made ---------------------------------------------------------


@pytest.mark.parametrize("what", ["link", "link inside", "file", "other things", "other things inside"])
@pytest.mark.parametrize("work", ["build", "up to date", "split"])
def test_a_build_folder_that_no_build_made_is_not_emptied(folder: Path, what: str, work: str) -> None:
    precious, staging = folder / "precious", build_folder(folder / "cache.h5")
    (precious / "0123").mkdir(parents=True)
    for path in (precious / "thesis.tex", precious / "0123" / "data.h5", precious / "0123" / "plan.json"):
        path.write_bytes(THESIS)
    if what == "link":
        staging.symlink_to("precious")
    elif what == "link inside":
        staging.mkdir()
        (staging / "0123").symlink_to(precious / "0123")
    elif what == "file":
        staging.write_bytes(THESIS)
    elif what == "other things":
        shutil.copytree(precious, staging)
    else:
        (staging / "0123").mkdir(parents=True)
        (staging / "0123" / "thesis.tex").write_bytes(THESIS)
    before = contents(folder)

    if work == "up to date":
        assert build_cache(folder / "raw", folder / "cache.h5", BUILD).up_to_date
    else:
        with pytest.raises(InputError, match=r"was not made by vidcache, .*\. Move it away"):
            if work == "split":
                split_cache(folder / "cache.h5", SplitOverrides(seed=7))
            else:
                build_cache(folder / "raw", folder / "cache.h5", dataclasses.replace(BUILD, overwrite=True))

    assert before == contents(folder)


@pytest.mark.parametrize("file", ["data.h5", "journal"])
@pytest.mark.parametrize("how", ["symlink", "hard link"])
def test_a_link_in_a_build_folder_is_not_written_through(folder: Path, file: str, how: str) -> None:
    def stop(done: int, *_: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    out = folder / "new.h5"
    with pytest.raises(KeyboardInterrupt):
        build_cache(folder / "raw", out, BUILD, stop)
    (build,) = build_folder(out).iterdir()
    thesis = folder / "thesis"
    (build / file).rename(thesis)
    (build / file).symlink_to(thesis) if how == "symlink" else os.link(thesis, build / file)
    before = thesis.read_bytes()

    if how == "symlink":
        with pytest.raises(InputError, match="was not made by vidcache"):
            build_cache(folder / "raw", out, BUILD)
    else:
        assert 12 == build_cache(folder / "raw", out, BUILD).num_videos

    assert before == thesis.read_bytes()


# --- a run is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["best.pt", "best.run/last.pt", "best.run/metrics.csv", "best.run/result.json"])
def test_a_run_that_is_there_is_kept_and_the_ways_out_are_named(folder: Path, left: str) -> None:
    for path in (folder / "best.pt", *(folder / "best.run").iterdir()):
        if path != folder / left:
            path.unlink()
    before = contents(folder)

    result = run("vidtrain", folder, "best.pt")

    assert 2 == result.exit_code
    assert f"{left}: belongs to an earlier run." in result.stderr
    assert ("--resume" in result.stderr) == ("last" in left)
    assert "--out OTHER.pt, or replace that run with --overwrite" in result.stderr
    assert before == contents(folder)


def test_it_is_said_before_torch_is_imported(folder: Path) -> None:
    code = "import sys; from vidcache.train.cli import main as m; "
    code += "status = None\ntry: m(sys.argv[1:])\nexcept SystemExit as e: status = e.code\n"
    code += "assert status == 2 and 'torch' not in sys.modules, status"

    subprocess.run([sys.executable, "-c", code, "learned.h5"], cwd=folder, check=True)


def test_the_three_ways_out_work(folder: Path) -> None:
    old = (folder / "best.pt").read_bytes()

    resumed, other = train(folder, "best.pt", "--resume"), train(folder, "other.pt", *QUICK)
    assert (0, 0) == (resumed.exit_code, other.exit_code), resumed.stderr
    assert old == (folder / "best.pt").read_bytes()
    replaced = train(folder, "best.pt", *QUICK, "--seed", 5, "--overwrite")

    assert 0 == replaced.exit_code, replaced.stderr
    assert 5 == Checkpoint.load(folder / "best.pt").config["seed"]


def test_overwrite_touches_nothing_before_the_model_is_ready(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)

    def fail(*_: object) -> None:
        raise InputError("no weights")

    monkeypatch.setattr(loop, "build_model", fail)

    assert 2 == run("vidtrain --overwrite", folder, "best.pt").exit_code

    assert before == contents(folder)


def test_after_overwrite_nothing_of_the_old_run_is_left(folder: Path) -> None:
    log = folder / "best.run" / "tensorboard" / "events.out.tfevents.1"
    log.parent.mkdir()
    log.write_bytes(b"old")

    with pytest.raises(InterruptedRunError):
        run_training([folder / "learned.h5"], folder / "best.pt", dataclasses.replace(CONFIG, batch_size=4),
                     overwrite=True, should_stop=lambda: True)  # fmt: skip

    assert not (folder / "best.pt").exists()
    assert {"config.json", "last.pt", "train_batch.png"} == set(contents(folder / "best.run"))


@pytest.mark.parametrize("options", [[], ["--resume"], ["--overwrite"]])
def test_one_run_at_a_time(folder: Path, options: list[str]) -> None:
    said: list[Result] = []

    def second() -> bool:
        if not said:
            said.append(train(folder, "best.pt", *QUICK, *options))
        return False

    run_training([folder / "learned.h5"], folder / "best.pt", CONFIG, overwrite=True, should_stop=second)

    assert 6 == said[0].exit_code
    assert "best.pt: another run is writing it. Wait for that run, or choose another --out" in said[0].stderr


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("best.pth", [], "best.run belongs to the run that writes best.pt. Choose an --out with another name"),
        ("best.pth", ["--overwrite"], "best.run belongs to the run that writes best.pt"),
        ("best.pth", ["--resume"], "best.run belongs to the run that writes best.pt"),
        ("x.run", [], "x.run"),
        ("best.pt", ["--overwrite", "--resume"], "--overwrite cannot be combined with --resume"),
    ],
)
def test_runs_that_would_share_a_folder_are_refused(folder: Path, out: str, options: list[str], message: str) -> None:
    before = contents(folder)

    result = train(folder, out, *QUICK, *options)

    assert 2 == result.exit_code
    assert message in result.stderr
    assert before == contents(folder)


def test_a_renamed_run_goes_on(folder: Path) -> None:
    for ending in ("pt", "run"):
        (folder / f"best.{ending}").rename(folder / f"first.{ending}")

    assert 0 == train(folder, "first.pt", "--resume").exit_code


def test_space_for_the_checkpoints_is_asked_for_before_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = sum(tensor.nbytes for tensor in TinyModel(2).state_dict().values())
    trained = sum(tensor.nbytes for tensor in TinyModel(2).parameters())
    needed = weights + 2 * (weights + 2 * trained)
    monkeypatch.setattr(run_dir, "free_bytes", lambda _: needed - 1)

    with pytest.raises(VidcacheError, match=rf"n\.pt: needs {needed:,} bytes with .*last\.pt, but its disk has"):
        run_training([folder / "learned.h5"], folder / "n.pt", CONFIG)
    assert not list((folder / "n.run").iterdir())

    monkeypatch.setattr(run_dir, "free_bytes", lambda _: needed)
    run_training([folder / "learned.h5"], folder / "n.pt", CONFIG)


# --- numbers are printed where no file can be ------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, in which nobody can make anything, root neither")
@pytest.mark.parametrize(
    ("name", "number", "as_json", "warning"),
    [
        ("videval", "accuracy ", '"report": null', "/proc/sys/e: the report cannot be written ("),
        ("leaks", "0.0", '"picture": null', "/proc/sys/e.png: the picture cannot be written ("),
    ],
)
def test_numbers_are_printed_where_no_file_can_be_written(
    folder: Path, name: str, number: str, as_json: str, warning: str
) -> None:
    shown = run(name, folder, "/proc/sys/e")
    WRITES["json"] = (WRITES[name][0], f"{WRITES[name][1]} --json")
    result = run("json", folder, "/proc/sys/e")

    assert (1, 1) == (shown.exit_code, result.exit_code)
    assert number in shown.stdout
    assert as_json in result.stdout
    assert warning in shown.stderr
    assert "with --out" in shown.stderr


def test_a_disk_that_fills_up_in_the_report_costs_no_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidcache.eval.report import files as results

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write_results", full)

    result = call(videval, folder / "learned.h5", "--ckpt", folder / "best.pt", "--device", "cpu", "--json")

    assert 1 == result.exit_code
    assert '"report": null' in result.stdout
    assert "best.eval: the report cannot be written (No space left on device). Choose another" in result.stderr
