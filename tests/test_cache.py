"""The cache file: what is written is read, what is not whole is refused, a killed build resumes."""

import dataclasses
import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import damage_clip, make_clip, make_plan, make_record
from vidcache.cache import writer
from vidcache.cache.builds import ENTRY_BYTES, Manifest, Skeleton, decode_entries, encode_entry
from vidcache.cache.format import COLUMNS, Header, Split, Status
from vidcache.cache.reader import CacheReader
from vidcache.cache.writer import CacheWriter
from vidcache.errors import CacheError, InputError, LockedError, VidcacheError
from vidcache.spec import Spec

SPEC = Spec(4, 16, 16)


def small_plan(num_clips: int = 6, spec: Spec = SPEC) -> Manifest:
    return make_plan(spec, ["a", "b"], np.arange(num_clips) % 2)


def fill(cache_writer: CacheWriter, rows: list[int] | None = None, seed: int = 0) -> None:
    for row in cache_writer.pending if rows is None else rows:
        clip = make_clip(cache_writer.manifest.spec, row, seed)
        cache_writer.write_clip(row, clip)
        cache_writer.mark_done(row, make_record(clip))


def finish(cache_writer: CacheWriter) -> Header:
    n = cache_writer.manifest.num_clips
    return cache_writer.finish(np.arange(n, dtype=np.int32), np.arange(n, dtype=np.uint8) % 3)


def build_small(path: Path, plan: Manifest | None = None) -> Path:
    with CacheWriter(path, plan or small_plan()) as cache_writer:
        fill(cache_writer)
        finish(cache_writer)
    return path


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A cache that a test may change, and its bytes."""
    path = build_small(tmp_path_factory.mktemp("small") / "c.h5")
    return path, path.read_bytes()


# --- format -----------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(2, 5), st.sampled_from([16, 17, 32]), st.sampled_from([16, 23]))
def test_what_is_written_is_read(n: int, t: int, height: int, width: int) -> None:
    path = Path(f"/tmp/vidcache-test-{os.getpid()}.h5")
    spec = Spec(t, height, width)
    try:
        build_small(path, small_plan(n, spec))
        with CacheReader(path) as reader:
            assert spec == reader.spec
            assert n == len(reader)
            found = reader.read(np.arange(n))
            assert (np.stack([make_clip(spec, row) for row in range(n)]) == found).all()
    finally:
        for file in (path, path.with_name(f"{path.name}.lock")):
            file.unlink(missing_ok=True)


def test_plain_h5py_reads_it(tmp_path: Path) -> None:
    path = build_small(tmp_path / "c.h5")

    with h5py.File(path, "r") as file:
        assert "vidcache" == file.attrs["format"].decode()
        assert {"classes", "clips", "videos"} == set(file)
        assert {column.name for column in COLUMNS} == set(file["videos"])
        assert [b"a", b"b"] == file["classes"][:].tolist()
        assert (make_clip(SPEC, 3) == file["clips"][3]).all()
        assert 0 == file["clips"].id.get_offset() % 4096
        assert file["clips"].chunks is None


def test_the_same_input_gives_the_same_bytes_whenever_it_is_built(tmp_path: Path) -> None:
    first = build_small(tmp_path / "one.h5").read_bytes()
    time.sleep(1.1)  # HDF5 time stamps count seconds

    assert first == build_small(tmp_path / "two.h5").read_bytes()


def test_the_fingerprint_names_the_content_and_the_split_hash_the_split(tmp_path: Path) -> None:
    def hashes(name: str, seed: int, shift: int) -> tuple[str, str]:
        with CacheWriter(tmp_path / name, small_plan()) as cache_writer:
            fill(cache_writer, seed=seed)
            header = cache_writer.finish(np.arange(6), np.roll(np.arange(6) % 3, shift))
        return header.fingerprint, header.split_hash

    content, split = hashes("a.h5", 0, 0)

    assert (content, split) == hashes("b.h5", 0, 0)
    assert content != hashes("c.h5", 1, 0)[0]
    assert (content, split) == (hashes("d.h5", 0, 1)[0], hashes("e.h5", 1, 0)[1])
    assert split != hashes("f.h5", 0, 1)[1]


SIZES, HEX = st.integers(0, 2**60), st.text("0123456789abcdef", min_size=32, max_size=32)
headers = st.builds(Header, SIZES, *[st.integers(0, 1024)] * 3, SIZES, SIZES, HEX, HEX, HEX, st.just(2))


@given(headers, st.integers(8, 4095), st.integers(1, 255))
def test_no_altered_header_is_accepted(header: Header, position: int, change: int) -> None:
    block = bytearray(header.to_bytes())
    block[position] ^= change

    with pytest.raises(CacheError, match="c.h5: the header is damaged"):
        Header.from_bytes(bytes(block), "c.h5")


# --- what a reader refuses --------------------------------------------------------------------


def test_a_missing_cache_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"none\.h5: No such file.*Build it first: vidcache build RAW .*none\.h5"):
        CacheReader(tmp_path / "none.h5")


@pytest.mark.parametrize("content", [b"", b"x" * 10, b"\x89HDF\r\n\x1a\n" + bytes(8192)])
def test_another_file_is_no_cache(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.h5").write_bytes(content)

    with pytest.raises(CacheError, match=r"x\.h5: not a file of vidcache \(it begins with"):
        CacheReader(tmp_path / "x.h5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "bytes long, expected"),
        (lambda data: data + b"x", "bytes long, expected"),
        (lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "the columns are damaged"),
    ],
)
def test_a_damaged_file_is_refused_before_hdf5_parses_it(
    tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    path = build_small(tmp_path / "c.h5")
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(CacheError, match=message):
        CacheReader(path)


def test_damaged_clips_are_found_and_named(tmp_path: Path) -> None:
    path = build_small(tmp_path / "c.h5")
    damage_clip(path, 4)

    with CacheReader(path) as reader:
        assert [4] == reader.damaged_rows().tolist()
        assert [] == reader.damaged_rows([0, 1]).tolist()


@settings(max_examples=max(200, int(os.environ.get("VIDCACHE_TORTURE", "0"))), deadline=None)
@given(st.data())
def test_any_change_on_disk_is_refused_or_found(small_cache: tuple[Path, bytes], data: st.DataObject) -> None:
    """A changed file is no cache, or gives the columns that were written, and the clips but for those it names."""
    path, golden = small_cache
    end = data.draw(st.sampled_from([8192, len(golden)]))  # half of them in the metadata
    start = data.draw(st.integers(0, end - 1))
    old = golden[start : start + data.draw(st.integers(0, 4096))]
    new = data.draw(st.one_of(st.binary(max_size=8), st.just(bytes(len(old))), st.binary(min_size=1, max_size=1)))
    path.write_bytes(golden[:start] + new + golden[start + len(old) :])
    try:
        with CacheReader(path) as reader:
            good = sorted({*range(6)} - {*reader.damaged_rows().tolist()})
            assert (reader.read(good) == np.stack([make_clip(SPEC, row) for row in range(6)])[good]).all()
            assert [b"a/video_0000.mp4", 0, 0] == [reader.columns[name][0] for name in ("path", "label", "split")]
    except CacheError:
        assert path.read_bytes() != golden


# --- reading ----------------------------------------------------------------------------------


def test_rows_by_split_are_disjoint_and_complete(cache_file: Path) -> None:
    with CacheReader(cache_file) as reader:
        parts = [reader.rows(split.name.lower()) for split in Split]
        assert sorted(np.concatenate(parts).tolist()) == reader.rows().tolist()
        with pytest.raises(ValueError, match="split 'dev', expected train, val or test"):
            reader.rows("dev")


def test_frames_in_any_order_into_a_given_buffer(cache_file: Path) -> None:
    with CacheReader(cache_file) as reader:
        whole = reader.read([5, 3, 5])
        out = np.zeros((3, 2, 16, 16, 3), np.uint8)

        assert reader.read([5, 3, 5], [3, 1], out) is out

        assert (whole[:, [3, 1]] == out).all()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (([0, 24, 30],), "row 24, expected 0 to 23"),
        (([-1],), "row -1, expected"),
        (([1, 2],), r"row 2 has no clip \(a/video_0002.mp4 failed\)"),
        (([1], [0, 4]), r"frames \[0, 4\], expected 0 to 3"),
        (([1], [-1]), r"frames \[-1\], expected 0 to 3"),
        (([1], None, np.zeros((1, 4, 16, 16, 3))), r"out is float64 \(1, 4, 16, 16, 3\), expected C-contiguous uint8"),
        (([1], None, np.zeros((2, 4, 16, 16, 3), np.uint8)), r"out is uint8 \(2, 4, 16, 16, 3\), expected .* \(1,"),
    ],
)
def test_impossible_requests_are_refused(cache_file: Path, request_: tuple[Any, ...], message: str) -> None:
    with CacheReader(cache_file) as reader, pytest.raises(ValueError, match=message):
        reader.read(*request_)


def test_a_cache_that_is_cut_while_open_is_an_error(tmp_path: Path) -> None:
    path = build_small(tmp_path / "c.h5")
    with CacheReader(path) as reader:
        os.truncate(path, path.stat().st_size - 10)
        with pytest.raises(CacheError, match="10 bytes early: it was cut while open"):
            reader.read([5])


def test_a_reader_works_after_pickling_and_in_threads(cache_file: Path) -> None:
    with CacheReader(cache_file) as reader:
        expected = reader.read(reader.rows())
        with pickle.loads(pickle.dumps(reader)) as copy:
            assert (expected == copy.read(copy.rows())).all()
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(reader.read, [reader.rows()] * 8):
                assert (expected == found).all()


# --- writing ----------------------------------------------------------------------------------


def test_an_old_cache_stays_until_the_new_one_is_finished(tmp_path: Path) -> None:
    path = build_small(tmp_path / "c.h5")
    old = path.read_bytes()

    with CacheWriter(path, small_plan(9)) as cache_writer:
        fill(cache_writer)
        assert old == path.read_bytes()
        finish(cache_writer)

    assert old != path.read_bytes()
    assert {"c.h5", "c.h5.lock"} == {file.name for file in tmp_path.iterdir()}


def test_a_second_builder_is_told_at_once(tmp_path: Path) -> None:
    with (
        CacheWriter(tmp_path / "c.h5", small_plan()) as cache_writer,
        pytest.raises(LockedError, match=r"c\.h5: another build is writing it"),
    ):
        CacheWriter(tmp_path / "c.h5", small_plan())
    assert 6 == LockedError.exit_code
    assert cache_writer.pending


def test_a_disk_without_room_is_reported_before_anything_is_written(tmp_path: Path) -> None:
    plan = make_plan(Spec(1024, 1024, 1024), ["a"], np.zeros(10**4, int))

    with pytest.raises(VidcacheError, match=r"c\.h5: needs 32,\d\d\d,\d\d\d,\d\d\d,\d\d\d bytes, but its disk has"):
        CacheWriter(tmp_path / "c.h5", plan)

    assert ["c.h5.lock"] == [file.name for file in tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": {"split_by": "regex (" + "a" * 5000 + ")"}}, "split_by is 'regex .*, expected text of at most"),
        ({"attributes": {"split_seed": -1}}, "split_seed is -1, expected a whole number from 0"),
        ({"attributes": {"anything": [[1]]}}, "attribute 'anything' is "),
        ({"classes": (b"a", b"a\0")}, r"the name 'a.*' ends with NUL, which would be cut off"),
        ({"classes": (b"a", b"a")}, "class b?'a' is there twice"),
        ({"paths": (b"a/1.mp4", b"a/1.mp4")}, "path b?'a/1.mp4' is there twice"),
    ],
)
def test_what_no_reader_would_accept_is_refused_before_anything_is_decoded(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    plan = make_plan(Spec(2, 16, 16), ["a", "b"], np.array([0, 1]))
    attributes = {**plan.attributes, **changes.pop("attributes", {})}

    with pytest.raises(InputError, match=rf"c\.h5: no cache can be made of this: {message}") as caught:
        CacheWriter(tmp_path / "c.h5", dataclasses.replace(plan, attributes=attributes, **changes))

    assert "Change the option or the name that this comes from" in str(caught.value)
    assert [] == list(tmp_path.iterdir())


def test_a_column_that_no_reader_would_accept_is_not_published(tmp_path: Path) -> None:
    plan = make_plan(Spec(2, 16, 16), ["a"], np.zeros(1, int))
    clip = make_clip(plan.spec, 0)
    with CacheWriter(tmp_path / "c.h5", plan) as writer:
        writer.write_clip(0, clip)
        writer.mark_done(0, make_record(clip, fps=np.nan))
        with pytest.raises(VidcacheError, match=r"c\.h5: fps of row 0 is nan, expected .* please report it"):
            writer.finish(np.zeros(1), np.zeros(1))

    assert not (tmp_path / "c.h5").exists()


def test_a_clip_of_another_shape_is_refused(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "c.h5", small_plan()) as cache_writer:
        with pytest.raises(ValueError, match=r"row 0: clip is uint8 \(3, 16, 16, 3\), expected uint8 \(4, 16, 16, 3\)"):
            cache_writer.write_clip(0, np.zeros((3, 16, 16, 3), np.uint8))
        with pytest.raises(ValueError, match=r"row 0: clip is float32 \(4, 16, 16, 3\), expected uint8"):
            cache_writer.write_clip(0, np.zeros(SPEC.clip_shape, np.float32))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="6 of 6 rows are not completed"):
            finish(cache_writer)


def test_an_empty_cache_takes_little_room(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "c.h5", small_plan(20_000, Spec(2, 16, 16))) as made:
        facts = (made.folder / "data.h5").stat()

    assert facts.st_blocks * 512 < facts.st_size / 10


def test_a_clip_that_does_not_match_its_journal_is_not_done(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "c.h5", small_plan()) as cache_writer:
        fill(cache_writer, [0, 1])
        offset = cache_writer._skeleton.clips_offset + SPEC.clip_bytes
    with (cache_writer.folder / "data.h5").open("r+b") as raw:
        raw.seek(offset)
        raw.write(bytes(50))

    with CacheWriter(tmp_path / "c.h5", small_plan()) as cache_writer:
        assert [1, 2, 3, 4, 5] == cache_writer.pending


@pytest.mark.parametrize(
    "damage", ["skeleton", "skeleton behind the columns", "plan", "another plan", "length", "gone", "other columns"]
)
def test_a_damaged_build_folder_is_begun_again(tmp_path: Path, damage: str) -> None:
    golden = build_small(tmp_path / "golden.h5").read_bytes()
    with CacheWriter(tmp_path / "c.h5", small_plan()) as cache_writer:
        fill(cache_writer, [0, 1, 2])
    folder = cache_writer.folder
    skeleton = Skeleton.load(folder)
    assert skeleton
    if damage.startswith("skeleton"):
        with (folder / "data.h5").open("r+b") as raw:
            raw.seek(4096 + 8 if damage == "skeleton" else skeleton.clips_offset - 1)
            raw.write(b"\xff")
    elif damage == "plan":
        (folder / "plan.json").write_text("[" * 1_000_000)
    elif damage == "another plan":  # a folder that was renamed
        dataclasses.replace(skeleton, manifest_hash="0" * 32).save(folder)
    elif damage == "other columns":  # as another version of vidcache leaves it
        columns = {name: offset for name, offset in skeleton.column_offsets.items() if name != "fps"}
        dataclasses.replace(skeleton, column_offsets=columns).save(folder)
    elif damage == "length":
        os.truncate(folder / "data.h5", 10_000)
    else:
        (folder / "data.h5").unlink()
    (folder / ".plan.json.123.tmp").write_text("half")

    with CacheWriter(tmp_path / "c.h5", small_plan()) as cache_writer:
        assert 6 == len(cache_writer.pending)
        fill(cache_writer)
        finish(cache_writer)

    assert golden == (tmp_path / "c.h5").read_bytes()
    assert {"c.h5", "c.h5.lock", "golden.h5", "golden.h5.lock"} == {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Skeleton)])
@pytest.mark.parametrize("value", [None, -1, 2**62, "x", [], {}], ids=repr)
def test_a_build_folder_of_a_stranger_is_begun_again(tmp_path: Path, field: str, value: object) -> None:
    with CacheWriter(tmp_path / "c.h5", small_plan()) as cache_writer:
        fill(cache_writer, [0, 1, 2])
    skeleton = Skeleton.load(cache_writer.folder)
    assert skeleton

    dataclasses.replace(skeleton, **{field: value}).save(cache_writer.folder)  # under a right hash

    with CacheReader(build_small(tmp_path / "c.h5")) as reader:
        assert not len(reader.damaged_rows())


def test_a_disk_that_alters_a_clip_is_not_published(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "c.h5", small_plan()) as cache_writer:
        fill(cache_writer)
        cache_writer.write_clip(3, np.zeros(SPEC.clip_shape, np.uint8))

        with pytest.raises(CacheError, match=r"row 3 \(b/video_0001.mp4\) does not read back as it was"):
            finish(cache_writer)

    assert not (tmp_path / "c.h5").exists()


def test_the_slot_of_a_failed_video_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    with CacheWriter(path, small_plan()) as cache_writer:
        cache_writer.write_clip(2, make_clip(SPEC, 2))  # a killed attempt
        fill(cache_writer, [0, 1, 3, 4, 5])
        cache_writer.mark_done(2, make_record(make_clip(SPEC, 2), Status.FAILED, "timeout: x"))
        finish(cache_writer)

    with h5py.File(path, "r") as file:
        assert not file["clips"][2].any()


def test_nothing_is_acknowledged_after_a_failed_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken_once(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:  # the next sync says that all is well, though what this one lost stays lost
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(writer, "sync_file", broken_once)
    with pytest.raises(OSError, match="Input/output error"), CacheWriter(tmp_path / "c.h5", small_plan()) as made:
        fill(made, [0, 1])
        made.commit()
    monkeypatch.undo()
    assert 1 == len(calls)

    with CacheWriter(tmp_path / "c.h5", small_plan()) as made:
        assert 6 == len(made.pending)


def test_clips_are_committed_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(writer, "sync_file", synced.append)
    monkeypatch.setattr(writer, "COMMIT_SECONDS", 1e9)
    with CacheWriter(tmp_path / "c.h5", small_plan(70)) as cache_writer:
        fill(cache_writer)
        assert 2 * 2 == len(synced)  # data and journal, after 32 and 64 clips
    assert 2 * 3 == len(synced)


# --- journal ----------------------------------------------------------------------------------

IDENTITY = "0123456789abcdef" * 2


def entries(rows: list[int]) -> bytes:
    clips = [make_clip(SPEC, row) for row in rows]
    return b"".join(encode_entry(IDENTITY, row, make_record(clip)) for row, clip in zip(rows, clips, strict=True))


@settings(max_examples=50)
@given(st.lists(st.integers(0, 9), max_size=12))
def test_a_journal_survives_its_bytes(rows: list[int]) -> None:
    data = entries(rows)

    records, done, good = decode_entries(IDENTITY, 10, data)

    assert len(data) == good
    assert sorted(set(rows)) == np.flatnonzero(done).tolist()
    for row in set(rows):
        assert make_record(make_clip(SPEC, row)) == records[row]


@given(st.binary(max_size=3 * ENTRY_BYTES))
def test_no_garbage_is_a_journal(data: bytes) -> None:
    _, done, good = decode_entries(IDENTITY, 10, data)

    assert (False, 0) == (done.any(), good)


@settings(max_examples=50)
@given(st.integers(0, 5 * ENTRY_BYTES - 1), st.integers(1, 255))
def test_an_altered_journal_is_read_up_to_the_change(position: int, change: int) -> None:
    data = bytearray(entries([0, 1, 2, 3, 4]))
    data[position] ^= change

    _, done, good = decode_entries(IDENTITY, 10, bytes(data))

    whole = position // ENTRY_BYTES
    assert (list(range(whole)), whole * ENTRY_BYTES) == (np.flatnonzero(done).tolist(), good)
