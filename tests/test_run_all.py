"""`make bench`: what benchmarks print lands in RESULTS.md, and a part that fails keeps what was there."""

from pathlib import Path

import pytest

from tests.benchmarks import run_all
from tests.benchmarks.run_all import Part

PARTS = (
    Part("first", "How fast?", "As fast as the floor.", "-c \"print('1.00 of the floor')\""),
    Part("second", "How small?", "", "-c \"print('DATA', 'SCRATCH')\""),
)


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *more: str, parts: tuple[Part, ...] = PARTS) -> None:
    monkeypatch.setattr(run_all, "PARTS", parts)
    command = ["run_all", "--data", "raw", "--scratch", str(out.parent / "scratch"), "--out", str(out), *more]
    monkeypatch.setattr("sys.argv", command)
    run_all.main()


def test_everything_is_written_with_its_command_machine_and_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "R.md"

    run(monkeypatch, out, "--only", "first,second")

    text = out.read_text()
    assert text.index("## first") < text.index("## second")
    for piece in (
        "\nHow fast?\n\nAsked for: As fast as the floor.\n\n    python -c \"print('1.00 of the floor')\"\n",
        "```\n1.00 of the floor\n```",
        f"```\nraw {tmp_path}/scratch\n```",
        "cores of ",
        "torch 2.",
        "ffmpeg ",
    ):
        assert piece in text, piece


def test_what_is_not_run_or_fails_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "R.md"
    run(monkeypatch, out, "--only", "first,second")
    changed = (Part("first", "How fast?", "", "-c 'exit(3)'"), Part("second", "How small?", "", "-c 'print(7)'"))

    with pytest.raises(SystemExit, match="failed: first"):
        run(monkeypatch, out, "--only", "first,second", parts=changed)

    assert "```\n1.00 of the floor\n```" in out.read_text()
    assert "```\n7\n```" in out.read_text()
    run(monkeypatch, out, "--only", "first")
    assert "```\n7\n```" in out.read_text()


@pytest.mark.slow
def test_the_cache_of_the_data_is_made_for_the_parts_that_need_it(
    raw_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from vidcache.cache.reader import CacheReader; print(len(CacheReader('CACHE')), 'clips')"
    parts = (PARTS[0], Part("third", "How many?", "", f'-c "{code}"'))

    run(monkeypatch, tmp_path / "R.md", "--only", "first", parts=parts)
    assert not (tmp_path / "scratch" / "data.h5").exists()
    run(monkeypatch, tmp_path / "R.md", "--data", str(raw_dir), parts=parts)

    assert "```\n9 clips\n```" in (tmp_path / "R.md").read_text()
    with pytest.raises(SystemExit, match="failed: third$"):
        run(monkeypatch, tmp_path / "R.md", "--data", str(tmp_path / "nothing"), parts=parts)


def test_a_part_that_does_not_exist_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path / "R.md", "--only", "first,third")

    assert "--only: no part third" in capsys.readouterr().err
