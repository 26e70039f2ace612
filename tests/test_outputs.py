"""What a command may replace: nothing but what it writes itself. Links, locks, and a run that is kept."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

from tests.helpers import TOOLS, make_cache, make_raw, tiny_models
from vidcache import cli, outputs
from vidcache.cache.lock import build_folder
from vidcache.cache.reader import CacheReader
from vidcache.checkpoint import Checkpoint
from vidcache.errors import InputError, InterruptedRunError, LockedError, VidcacheError
from vidcache.eval.cli import main as videval
from vidcache.eval.predict_cli import main as vidpredict
from vidcache.files import follow, write_atomically, write_text_atomically
from vidcache.plotting import to_png
from vidcache.preprocess.build import build_cache
from vidcache.preprocess.demo import render_demo
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.split.config import SplitOverrides
from vidcache.preprocess.split.resplit import split_cache
from vidcache.spec import Spec
from vidcache.train import loop
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


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything below a folder: bytes of files, targets of links."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(autouse=True)
def _tiny() -> Iterator[None]:
    with tiny_models():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw/, cache.h5 of it, leaky.h5 with look-alikes, best.pt and best.run/."""
    folder = tmp_path_factory.mktemp("made")
    make_raw(folder / "raw", {"a": 6, "b": 6})
    build_cache(folder / "raw", folder / "cache.h5", BUILD)
    make_cache(folder / "learned.h5", {"a": 12, "b": 12}, spec=SPEC, learnable=True)
    with tiny_models():
        run_training([folder / "learned.h5"], folder / "best.pt", CONFIG)
    return folder


@pytest.fixture
def place_(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "w")
    return tmp_path / "w"


# --- the table: every command that writes, over what is not its own --------------------------------

# Command, its arguments in the folder of `made`, and what of them is the output.
WRITES: dict[str, tuple[click.Command, str]] = {
    "build": (cli.main, "build raw OUT --num-frames 4 --size 16 --workers 1"),
    "build --overwrite": (cli.main, "build raw OUT --num-frames 4 --size 16 --workers 1 --overwrite"),
    "vidtrain": (vidtrain, f"learned.h5 --out OUT {' '.join(QUICK)}"),
    "vidtrain --overwrite": (vidtrain, f"learned.h5 --out OUT --overwrite {' '.join(QUICK)}"),
    "features": (vidtrain, f"learned.h5 --out new.pt --cache-features 1 --freeze stem --feature-file OUT {' '.join(QUICK)}"),
    "preview": (cli.main, "preview learned.h5 --out OUT.png"),
    "leaks": (cli.main, "leaks learned.h5 --max-distance 0.1 --out OUT.png"),
    "export": (cli.main, "export best.pt --format torch-export --out OUT.pt2"),
    "videval": (videval, "learned.h5 --ckpt best.pt --device cpu --out OUT"),
    "analyze": (cli.main, "analyze learned.h5 --out OUT"),
    "analyze RAW": (cli.main, "analyze raw --out OUT"),
    "vidpredict": (vidpredict, "raw --ckpt best.pt --device cpu --explain --out OUT"),
    "demo": (cli.main, "demo OUT"),
}  # fmt: skip
FILES = [name for name, (_, line) in WRITES.items() if name not in ("videval", "analyze", "analyze RAW", "vidpredict", "demo")]  # fmt: skip
FOLDERS = [name for name in WRITES if name not in FILES]


def run(name: str, folder: Path, out: object) -> Result:
    command, line = WRITES[name]
    names = {"OUT": str(out), "OUT.png": f"{out}.png", "OUT.pt2": f"{out}.pt2"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return call(command, *(names.get(word, word) for word in line.split()))


def ending(name: str) -> str:
    return next((word[3:] for word in WRITES[name][1].split() if word.startswith("OUT.")), "")


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("content", [THESIS, b"", b"PK\x03\x04 a backup"])
def test_a_file_of_another_kind_is_never_replaced(place_: Path, name: str, content: bytes) -> None:
    (place_ / f"mine{ending(name)}").write_bytes(content)
    before = contents(place_)

    result = run(name, place_, "mine")

    assert result.exit_code in (2, 4, 5), result.output
    assert ("is not replaced. Choose another name" in result.stderr) or "is a file" in result.stderr
    assert before == contents(place_)


@pytest.mark.parametrize("name", [name for name in FILES if not ending(name)])
@pytest.mark.parametrize("other", ["raw/a/a_0.mkv", "learned.h5", "best.pt", "cache.failures.csv"])
def test_no_input_and_nothing_of_another_command_is_replaced(place_: Path, name: str, other: str) -> None:
    if ("build" in name and other == "learned.h5") or ("vidtrain" in name and other == "best.pt"):
        pytest.skip("it is of the kind that this command writes")
    before = contents(place_)

    assert run(name, place_, other).exit_code in (2, 4, 5)

    assert before == contents(place_)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("how", ["symlink", "hard link"])
def test_a_link_to_what_is_not_ours_is_no_way_around(place_: Path, name: str, how: str) -> None:
    if how == "hard link" and name in FOLDERS:
        pytest.skip("there are none of folders")
    if name in FOLDERS:
        (place_ / "thesis").mkdir()
        (place_ / "thesis" / "one.tex").write_bytes(THESIS)
    else:
        (place_ / "thesis").write_bytes(THESIS)
    link = place_ / f"link{ending(name)}"
    link.symlink_to("thesis") if how == "symlink" else os.link(place_ / "thesis", link)
    before = contents(place_)

    assert run(name, place_, "link").exit_code in (2, 4, 5)

    assert before == contents(place_)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_other_things_is_left_alone(place_: Path, name: str) -> None:
    (place_ / "mine").mkdir()
    (place_ / "mine" / "chapter1.tex").write_bytes(THESIS)
    before = contents(place_)

    result = run(name, place_, "mine")

    assert 2 == result.exit_code
    assert "mine: is a folder of other things (" in result.stderr
    assert before == contents(place_)


@pytest.mark.parametrize(("name", "file"), [("videval", "report.html"), ("analyze", "videos.csv"), ("videval", "per_class.png")])  # fmt: skip
def test_a_foreign_file_in_a_folder_of_results_is_not_replaced(place_: Path, name: str, file: str) -> None:
    assert 0 == run(name, place_, "mine").exit_code
    (place_ / "mine" / file).write_bytes(THESIS)
    before = contents(place_)

    assert 2 == run(name, place_, "mine").exit_code

    assert before == contents(place_)


@pytest.mark.parametrize("name", ["build", "build --overwrite", "preview", "leaks", "videval", "analyze"])
def test_what_a_command_has_written_it_writes_again(place_: Path, name: str) -> None:
    first = run(name, place_, "mine")
    second = run(name, place_, "mine")

    assert (0, 0) == (first.exit_code, second.exit_code), second.output


@pytest.mark.parametrize("out", ["raw/c.h5", "raw/a/c.h5", "./raw/../raw/c.h5", "inside/c.h5"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_built_into_the_folder_of_videos(place_: Path, out: str, overwrite: bool) -> None:
    (place_ / "inside").symlink_to("raw/b")
    before = contents(place_)

    with pytest.raises(InputError, match=r"c\.h5: lies in .*raw, which is only read\. Choose a place outside of it"):
        build_cache(place_ / "raw", place_ / out, dataclasses.replace(BUILD, overwrite=overwrite))

    assert before == contents(place_)


def test_a_list_of_failures_of_another_kind_is_not_replaced(place_: Path) -> None:
    (place_ / "new.failures.csv").write_bytes(b"path,score\na,1\n")

    with pytest.raises(InputError, match=r"new\.failures\.csv: begins with b'path,sco', not a list of failures"):
        build_cache(place_ / "raw", place_ / "new.h5", BUILD)

    assert not (place_ / "new.h5").exists()


def test_a_split_list_is_no_place_for_the_list_of_failures(place_: Path) -> None:
    list_ = place_ / "new.failures.csv"
    list_.write_text("path,class,status,reason,split\n")
    choice = SplitOverrides(source="files", files=(str(list_),))

    with pytest.raises(InputError, match=r"new\.failures\.csv: is read by this command"):
        build_cache(place_ / "raw", place_ / "new.h5", dataclasses.replace(BUILD, split=choice))


def test_a_checkpoint_and_a_cache_in_each_others_place_are_named(place_: Path) -> None:
    swapped = call(videval, place_ / "best.pt", place_ / "learned.h5", "--device", "cpu")
    no_checkpoint = call(videval, place_ / "learned.h5", "--ckpt", place_ / "cache.h5", "--out", place_ / "e")

    assert 4 == swapped.exit_code
    assert "best.pt: is a checkpoint, not a cache. Name a cache" in swapped.stderr
    assert "overwrite" not in swapped.stderr
    assert 5 == no_checkpoint.exit_code
    assert "cache.h5: is a cache, not a checkpoint." in no_checkpoint.stderr


@pytest.mark.parametrize("command", ["info", "verify", "split", "analyze", "leaks", "preview"])
def test_no_advice_to_replace_a_file_that_is_no_cache(place_: Path, command: str) -> None:
    (place_ / "notes.h5").write_bytes(THESIS)

    result = call(cli.main, command, place_ / "notes.h5")

    assert 4 == result.exit_code
    assert "notes.h5: not a file of vidcache (it begins with b'\\x00my thes'). Name a cache" in result.stderr
    for word in ("overwrite", "elete", "estore"):
        assert word not in result.stderr


@pytest.mark.pictures
def test_a_cut_checkpoint_is_still_one_and_a_picture_of_another_program_is_none(place_: Path) -> None:
    os.truncate(place_ / "best.pt", 3000)
    from matplotlib.figure import Figure

    drawn = to_png(Figure(), 50)
    (place_ / "ours.png").write_bytes(drawn)
    (place_ / "holiday.png").write_bytes(drawn.replace(b"Software\0vidcache", b"Software\0camera!!"))
    torch.save({"weights": torch.zeros(3)}, place_ / "other.pt")

    assert outputs.CHECKPOINT.is_at(place_ / "best.pt")
    assert not outputs.CHECKPOINT.is_at(place_ / "other.pt")
    assert outputs.PICTURE.is_at(place_ / "ours.png")
    assert not outputs.PICTURE.is_at(place_ / "holiday.png")
    assert not outputs.PICTURE.is_at(place_ / "raw")


@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/null") if kind == "device" else tmp_path / "x"
    path.mkdir() if kind == "folder" else os.mkfifo(path) if kind == "fifo" else None

    with pytest.raises(InputError, match=r"(Is a directory|Not a regular file), and is not replaced\. Choose"):
        outputs.claim(path, outputs.CACHE)


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
    place_: Path, write: Callable[[Path, Path], None]
) -> None:
    big = place_ / "big"
    big.mkdir()
    link = place_ / "here.png"
    link.symlink_to("big/there.png")

    write(place_, link)

    assert link.is_symlink()
    assert (big / "there.png").is_file()
    assert not [path for path in place_.iterdir() if path.name.startswith(("here", ".here")) and path != link]


def test_an_older_cache_behind_a_link_is_replaced_and_the_link_stays(place_: Path) -> None:
    (place_ / "big").mkdir()
    (place_ / "cache.h5").rename(place_ / "big" / "c.h5")
    (place_ / "cache.h5").symlink_to("big/c.h5")
    make_raw(place_ / "more" / "raw", {"a": 7, "b": 6})

    assert 13 == build_cache(place_ / "more" / "raw", place_ / "cache.h5", BUILD).num_videos
    assert not split_cache(place_ / "cache.h5", SplitOverrides(seed=5)).up_to_date

    assert (place_ / "cache.h5").is_symlink()
    with CacheReader(place_ / "big" / "c.h5") as reader:
        assert 13 == len(reader)
    assert not list(place_.glob(".cache.h5*"))


def test_two_names_of_one_cache_meet_the_same_lock(place_: Path) -> None:
    (place_ / "link.h5").symlink_to("new.h5")

    def second(*_: object) -> None:
        with pytest.raises(LockedError, match="another build is writing it"):
            build_cache(place_ / "raw", place_ / "link.h5", BUILD)

    build_cache(place_ / "raw", place_ / "new.h5", BUILD, second)

    assert build_cache(place_ / "raw", place_ / "link.h5", BUILD).up_to_date


def test_a_link_that_leads_to_itself_is_an_error(place_: Path) -> None:
    (place_ / "loop.h5").symlink_to("loop.h5")

    for write in (through_build, through_training):
        with pytest.raises(InputError, match=r"loop\.h5: is a link that leads to itself\. Choose another name"):
            write(place_, place_ / "loop.h5")


def test_a_temporary_file_is_never_what_a_link_of_its_name_leads_to(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_bytes(THESIS)
    (tmp_path / f".a.txt.{os.getpid()}.tmp").symlink_to("thesis")

    write_text_atomically(tmp_path / "a.txt", "new")

    assert (b"new", THESIS) == ((tmp_path / "a.txt").read_bytes(), (tmp_path / "thesis").read_bytes())


def test_a_scratch_folder_is_not_used_for_a_link(tmp_path: Path) -> None:
    """What it leads to may be on another disk."""
    for name in ("there", "scratch"):
        (tmp_path / name).mkdir()
    (tmp_path / "a.txt").symlink_to("there/a.txt")
    seen = []

    write_atomically(tmp_path / "a.txt", lambda file: seen.append(Path(file.name).parent), tmp_path / "scratch")

    assert [tmp_path / "there"] == [follow(tmp_path / "a.txt").parent] == seen


# --- build folders that somebody else made ---------------------------------------------------------


@pytest.mark.parametrize("what", ["link", "link inside", "file", "other things", "other things inside"])
@pytest.mark.parametrize("work", ["build", "up to date", "split"])
def test_a_build_folder_that_no_build_made_is_not_emptied(place_: Path, what: str, work: str) -> None:
    precious, folder = place_ / "precious", build_folder(place_ / "cache.h5")
    (precious / "0123").mkdir(parents=True)
    for path in (precious / "thesis.tex", precious / "0123" / "data.h5", precious / "0123" / "plan.json"):
        path.write_bytes(THESIS)
    if what == "link":
        folder.symlink_to("precious")
    elif what == "link inside":
        folder.mkdir()
        (folder / "0123").symlink_to(precious / "0123")
    elif what == "file":
        folder.write_bytes(THESIS)
    elif what == "other things":
        shutil.copytree(precious, folder)
    else:
        (folder / "0123").mkdir(parents=True)
        (folder / "0123" / "thesis.tex").write_bytes(THESIS)
    before = contents(place_)

    if work == "up to date":
        assert build_cache(place_ / "raw", place_ / "cache.h5", BUILD).up_to_date
    else:
        with pytest.raises(InputError, match=r"was not made by vidcache, .*\. Move it away"):
            if work == "split":
                split_cache(place_ / "cache.h5", SplitOverrides(seed=7))
            else:
                build_cache(place_ / "raw", place_ / "cache.h5", dataclasses.replace(BUILD, overwrite=True))

    after = contents(place_)
    after.pop("cache.h5.lock", None)
    before.pop("cache.h5.lock", None)
    assert before == after


@pytest.mark.parametrize("file", ["data.h5", "journal"])
@pytest.mark.parametrize("how", ["symlink", "hard link"])
def test_a_link_in_a_build_folder_is_not_written_through(place_: Path, file: str, how: str) -> None:
    def stop(done: int, *_: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    out = place_ / "new.h5"
    with pytest.raises(KeyboardInterrupt):
        build_cache(place_ / "raw", out, BUILD, stop)
    (build,) = build_folder(out).iterdir()
    thesis = place_ / "thesis"
    shutil.copy(build / file, thesis)
    (build / file).unlink()
    (build / file).symlink_to(thesis) if how == "symlink" else os.link(thesis, build / file)
    before = thesis.read_bytes()

    if how == "symlink":
        with pytest.raises(InputError, match="was not made by vidcache"):
            build_cache(place_ / "raw", out, BUILD)
    else:
        assert 12 == build_cache(place_ / "raw", out, BUILD).num_videos

    assert before == thesis.read_bytes()


def test_a_lock_that_is_a_link_is_refused(place_: Path) -> None:
    (place_ / "new.h5.lock").symlink_to("made_by_lock")

    with pytest.raises(VidcacheError, match=r"new\.h5\.lock: is a link, not a lock file\. Rename it"):
        build_cache(place_ / "raw", place_ / "new.h5", BUILD)

    assert not (place_ / "made_by_lock").exists()


# --- a run is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["best.pt", "best.run/last.pt", "best.run/metrics.csv", "best.run/result.json"])
def test_a_run_that_is_there_is_kept_and_the_ways_out_are_named(place_: Path, left: str) -> None:
    for path in (place_ / "best.pt", *(place_ / "best.run").iterdir()):
        if path != place_ / left:
            path.unlink()
    before = contents(place_)

    result = run("vidtrain", place_, "best.pt")

    assert 2 == result.exit_code
    assert (
        f"{left}: belongs to an earlier run. {'Continue that run with --resume, w' if 'last' in left else 'W'}rite this one "
        "elsewhere with --out OTHER.pt, or replace that run with --overwrite"
    ) in result.stderr
    assert before == contents(place_)


def test_the_three_ways_out_work(place_: Path) -> None:
    old = (place_ / "best.pt").read_bytes()

    resumed = call(vidtrain, place_ / "learned.h5", "--out", place_ / "best.pt", "--resume")
    other = call(vidtrain, place_ / "learned.h5", "--out", place_ / "other.pt", *QUICK)
    assert (0, 0) == (resumed.exit_code, other.exit_code), resumed.stderr
    assert old == (place_ / "best.pt").read_bytes()
    replaced = call(vidtrain, place_ / "learned.h5", "--out", place_ / "best.pt", *QUICK, "--seed", 5, "--overwrite")

    assert 0 == replaced.exit_code, replaced.stderr
    assert 5 == Checkpoint.load(place_ / "best.pt").config["seed"]


def test_overwrite_touches_nothing_before_the_model_is_ready(place_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(place_)

    def fail(*_: object) -> None:
        raise InputError("no weights")

    monkeypatch.setattr(loop, "build_model", fail)

    assert 2 == run("vidtrain --overwrite", place_, "best.pt").exit_code

    assert before == contents(place_)


def test_after_overwrite_nothing_of_the_old_run_is_left(place_: Path) -> None:
    log = place_ / "best.run" / "tensorboard" / "events.out.tfevents.1"
    log.parent.mkdir()
    log.write_bytes(b"old")

    with pytest.raises(InterruptedRunError):
        run_training([place_ / "learned.h5"], place_ / "best.pt", dataclasses.replace(CONFIG, batch_size=4),
                     overwrite=True, should_stop=lambda: True)  # fmt: skip

    assert not (place_ / "best.pt").exists()
    assert {"config.json", "last.pt", "train_batch.png"} == set(contents(place_ / "best.run"))


def test_overwrite_and_resume_exclude_each_other(place_: Path) -> None:
    result = call(vidtrain, place_ / "learned.h5", "--out", place_ / "best.pt", "--overwrite", "--resume")

    assert 2 == result.exit_code
    assert "--overwrite cannot be combined with --resume" in result.stderr


@pytest.mark.parametrize("options", [[], ["--resume"], ["--overwrite"]])
def test_one_run_at_a_time(place_: Path, options: list[str]) -> None:
    said: list[Result] = []

    def second() -> bool:
        if not said:
            said.append(call(vidtrain, place_ / "learned.h5", "--out", place_ / "best.pt", *QUICK, *options))
        return False

    run_training([place_ / "learned.h5"], place_ / "best.pt", CONFIG, overwrite=True, should_stop=second)

    assert 6 == said[0].exit_code
    assert "best.pt: another run is writing it. Wait for that run, or choose another --out" in said[0].stderr
    assert 0 == call(vidtrain, place_ / "learned.h5", "--out", place_ / "best.pt", "--resume").exit_code


def test_two_checkpoints_do_not_share_a_folder(place_: Path) -> None:
    before = contents(place_)

    for options in ([], ["--overwrite"], ["--resume"]):
        result = call(vidtrain, place_ / "learned.h5", "--out", place_ / "best.pth", *QUICK, *options)

        assert 2 == result.exit_code
        assert "best.run belongs to the run that writes best.pt. Choose an --out with another name" in result.stderr
    assert 2 == call(vidtrain, place_ / "learned.h5", "--out", place_ / "x.run", *QUICK).exit_code
    assert before == contents(place_)


def test_a_renamed_run_goes_on(place_: Path) -> None:
    for ending in ("pt", "run"):
        (place_ / f"best.{ending}").rename(place_ / f"first.{ending}")

    assert 0 == call(vidtrain, place_ / "learned.h5", "--out", place_ / "first.pt", "--resume").exit_code


def test_features_and_checkpoint_do_not_share_a_file(place_: Path) -> None:
    result = run("features", place_, "new.pt")

    assert 2 == result.exit_code
    assert "new.pt: is read by this command" in result.stderr


# --- numbers are printed where no file can be ------------------------------------------------------


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """Nobody can make anything in it, root neither."""
    return Path("/proc/sys") if sys.platform == "linux" else pytest.skip("needs /proc")


def test_videval_prints_its_numbers_where_the_report_cannot_be_written(place_: Path, unwritable: Path) -> None:
    arguments = [place_ / "learned.h5", "--ckpt", place_ / "best.pt", "--device", "cpu", "--out", unwritable / "e"]

    shown, as_json = call(videval, *arguments), call(videval, *arguments, "--json")

    assert (1, 1) == (shown.exit_code, as_json.exit_code)
    assert "accuracy " in shown.stdout
    assert "not written" in shown.stdout
    assert '"report": null' in as_json.stdout
    assert "Error: /proc/sys/e: the report cannot be written (" in shown.stderr
    assert "). Choose another folder with --out" in shown.stderr


def test_a_disk_that_fills_up_in_the_report_costs_no_number(place_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidcache.eval.report import files as results

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write_results", full)

    result = call(videval, place_ / "learned.h5", "--ckpt", place_ / "best.pt", "--device", "cpu", "--json")

    assert 1 == result.exit_code
    assert '"report": null' in result.stdout
    assert "best.eval: the report cannot be written (No space left on device). Choose another" in result.stderr


def test_leaks_prints_its_pairs_where_the_picture_cannot_be_written(tmp_path: Path, unwritable: Path) -> None:
    from tests.test_leaks import scenes, write
    from vidcache.cache.format import Split

    first, second = scenes(2)
    cache = write(tmp_path / "c.h5", [first, second, first], [Split.TRAIN, Split.VAL, Split.TEST])

    result = call(cli.main, "leaks", cache, "--out", unwritable / "p.png")
    as_json = call(cli.main, "leaks", cache, "--out", unwritable / "p.png", "--json")

    assert (1, 1) == (result.exit_code, as_json.exit_code)
    assert "0.000000  " in result.stdout
    assert '"picture": null' in as_json.stdout
    assert "p.png: the picture cannot be written (" in result.stderr
