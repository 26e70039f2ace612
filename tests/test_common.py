"""Specs, names that are safe to print, files that are replaced in one step."""

import errno
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from vidcache.files import pread_all, pwrite_all, write_atomically, write_text_atomically
from vidcache.spec import Spec
from vidcache.text import one_line, plural, printable


def test_a_default_clip_is_588_pages() -> None:
    assert 588 * 4096 == Spec().clip_bytes
    assert (64, 112, 112, 3) == Spec().clip_shape


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 1}, "num_frames: 1, expected 2 to 1024"),
        ({"height": 15}, "height: 15, expected 16 to 1024"),
        ({"width": 1025}, "width: 1025, expected 16 to 1024"),
    ],
)
def test_a_spec_out_of_range_is_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spec(**fields)


@given(st.builds(Spec, st.integers(2, 1024), st.integers(16, 1024), st.integers(16, 1024), st.text(), st.text()))
def test_a_spec_survives_its_dict(spec: Spec) -> None:
    assert spec == Spec.from_dict(spec.to_dict())


def test_a_spec_with_other_fields_is_refused() -> None:
    with pytest.raises(ValueError, match="height is missing"):
        Spec.from_dict({"num_frames": 4})


@given(st.binary(max_size=40))
def test_printable_names_cannot_move_a_cursor_and_differ_when_the_names_do(name: bytes) -> None:
    shown = printable(name)

    bad = [c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]
    assert not set(bad) - {"\u200c", "\u200d"}
    shown.encode("utf-8")
    Text(shown)


def test_printable_keeps_ordinary_names() -> None:
    assert "émoji_🏋️_名前.mp4" == printable("émoji_🏋️_名前.mp4")
    assert r"a\x1b[2Jb\n\xff" == printable(b"a\x1b[2Jb\n\xff")
    assert r"\u202egpj.exe" == printable("\u202egpj.exe")


@given(st.text(), st.integers(1, 30))
def test_one_line_is_one_short_line(text: str, limit: int) -> None:
    line = one_line(text, limit)

    assert len(line.encode()) <= limit
    assert len(line.splitlines()) <= 1


def test_plural() -> None:
    assert ["1 clip", "0 clips", "1,200 clips"] == [plural(n, "clip") for n in (1, 0, 1200)]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text_atomically(path, "old")

    def half(file: object) -> None:
        file.write(b"ne")  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        write_atomically(path, half)

    assert "old" == path.read_text()
    assert [path] == list(tmp_path.iterdir())


def test_undecodable_names_survive_a_text_file(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "x", os.fsdecode(b"\xff\xfe"))

    assert b"\xff\xfe" == (tmp_path / "x").read_bytes()


def test_reading_past_the_end_is_an_error_not_zeros(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    try:
        pwrite_all(descriptor, memoryview(b"abc"), 2)
        out = bytearray(5)
        pread_all(descriptor, memoryview(out), 0)
        assert b"\0\0abc" == bytes(out)
        with pytest.raises(EOFError, match="file ends at byte 5, 2 bytes early"):
            pread_all(descriptor, memoryview(bytearray(4)), 3)
    finally:
        os.close(descriptor)
