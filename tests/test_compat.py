"""Files of every format version as they were when it was new, made by hand: every later reader has to read them.

Names, dtypes, offsets and the order of what is hashed are literals here, and come from nowhere else. They never change:
a new version gets its own. Only the two tests of what is written today move on to it.
"""

import io
import os
import struct
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision
import xxhash
from click.testing import CliRunner, Result

from tests.helpers import make_video
from vidcache import cli
from vidcache.cache import format as layout
from vidcache.cache.builds import Manifest
from vidcache.cache.format import RECORD
from vidcache.cache.reader import CacheReader
from vidcache.cache.writer import CacheWriter
from vidcache.checkpoint import Checkpoint
from vidcache.errors import MismatchError
from vidcache.near_duplicates import perceptual_hash
from vidcache.preprocess.build import build_cache, plan_attributes
from vidcache.preprocess.options import BuildOptions
from vidcache.preprocess.split.config import SplitConfig
from vidcache.preprocess.split.groups import GroupBy
from vidcache.spec import Spec
from vidcache.train.cli import main as vidtrain

# --- caches of format versions 1 and 2 -------------------------------------------------------------

USER_BLOCK = struct.Struct("<8sII QIIII QQQ 32s32s32s")  # without padding; zeros up to byte 4088, then the checksum
N, T, H, W = 5, 2, 16, 20
CLIP_BYTES = 1920

SAMPLING, SCALING = b"uniform-with-endpoints", b"bicubic+accurate_rnd+full_chroma_int+bitexact"
SPEC = (
    b"[('height', 16), ('num_frames', 2), ('sampling', 'uniform-with-endpoints'), "
    b"('scaling', 'bicubic+accurate_rnd+full_chroma_int+bitexact'), ('width', 20)]"
)
CLASSES = [b"Jump", b"run", b"\xe9t\xe9"]  # the last one is no UTF-8
ATTRIBUTES: dict[str, bytes | int | list[float]] = {
    "format": b"vidcache",
    "format_version": 0,  # of each
    "sampling": SAMPLING,
    "scaling": SCALING,
    "class_depth": 0,
    "split_by": rb"regex _(\d+)",
    "split_source": b"fractions",
    "split_fractions": [0.6, 0.2, 0.2],
    "split_seed": 7,
    "split_near_duplicates": b"report",
    "split_files_hash": b"",
    "vidcache_version": b"0.1.0",
    "ffmpeg_version": b"8.1",
}

# In the order of the file: name, dtype, values. Row 1 is damaged, row 2 failed: it has no clip. Row 3 is in no part.
HASHES = (
    "52dd37959ad45b761992ab4f775edf7e 69d2f1f6c795b8e312d9dd6dced98c16  "
    "7b4ed0cacbf58b55875b3a6411f769c6 b19a8dce32f75f8d96d3a842cd61016f"
)
PATHS = [b"Jump/a_1.mp4", b"Jump/b \xff_2.mkv", b"run/\xe2\x9c\x93_3.mov", b"run/z_3.mp4", b"\xe9t\xe9/<b>[red]_4.avi"]
ERRORS = [b"", b"truncated: 54 of 120 frames", b"no_frames: none of 3 packets could be decoded", b"", b""]
SOURCES = [b"%032x" % 1, b"%032x" % 0xABCDEF, b"%032x" % 3, b"f" * 32, b"0123456789abcdef" * 2]
COLUMNS_2: list[tuple[str, str, Any]] = [
    ("path", "S18", PATHS),
    ("label", "<i4", [0, 0, 1, 1, 2]),
    ("source_bytes", "<i8", [1000, 2**40, 7, 123456, 1]),
    ("source_mtime_ns", "<i8", [1700000000123456789, 0, 1, -5, 2**62]),
    ("status", "|u1", [0, 1, 2, 0, 0]),
    ("error", "S240", ERRORS),
    ("source_hash", "S32", SOURCES),
    ("clip_hash", "S32", HASHES.encode().split(b" ")),
    ("perceptual_hash", "|u1", (np.arange(N * 16 * 12 * 12) * 7 % 256).reshape(N, 16, 12, 12)),
    ("width", "<i4", [320, 1920, 0, 64, 7680]),
    ("height", "<i4", [240, 1080, 0, 48, 4320]),
    ("rotation", "<i2", [0, 90, 0, 180, 270]),
    ("fps", "<f8", [25.0, 29.97, 0.0, 12.5, 0.1]),
    ("duration_seconds", "<f8", [0.08, 1.8018, 0.0, 0.16, 1e6]),
    ("num_frames", "<i8", [2, 54, 0, 1, 100000]),
    ("num_frames_from_header", "<i8", [2, 120, 3, -1, 2**33]),
    ("num_real", "<i4", [2, 2, 0, 1, 2]),
    ("codec", "S24", [b"h264", b"hevc", b"", b"ffv1", b"a_codec_of_24_characters"]),
    ("pixel_format", "S24", [b"yuv420p", b"yuv420p10le", b"", b"gray", b"rgb24"]),
    ("transfer", "S16", [b"bt709", b"smpte2084", b"", b"arib-std-b67", b"a_transfer_of_16"]),
    ("primaries", "S16", [b"bt709", b"bt2020", b"", b"", b"primaries_of_16_"]),
    ("mean_rgb", "<f4", [[0.1, 127.5, 255], [1, 2, 3], [0, 0, 0], [1e-3, 99.99, 3.5], [250, 128, 6]]),
    ("group", "<i4", [0, 3, 1, 1, -2]),
    ("split", "|u1", [0, 1, 0, 3, 2]),
]
NEAR_GROUP = ("near_group", "<i8", [0, 0, -1, 0, 0])
COLUMNS_1 = [column for column in COLUMNS_2 if column[0] not in ("transfer", "primaries")]
MEANINGS = {column.name: column.meaning for column in layout.COLUMNS}  # words are no part of the format
FIRST_2 = 20  # the first caches of version 2 lack near_group
COLUMNS = {1: COLUMNS_1, 2: [*COLUMNS_2, NEAR_GROUP], FIRST_2: COLUMNS_2}
VALUES: dict[str, npt.NDArray[Any]] = {
    name: np.array(values, dtype) for name, dtype, values in (*COLUMNS_2, NEAR_GROUP)
}
CLIPS = (np.arange(N * CLIP_BYTES) * 31 % 251).astype("u1").reshape(N, T, H, W, 3)
CLIPS[2] = 0  # the slot of the failed video
FINGERPRINT = "72af5909cd128eba7f8bb96ed796c9ec"
SPLIT_HASH = "dd04433f0d9baf0c56d935e8568034fb"


def hash_columns(digest: Any, *names: str) -> bytes:
    for name in names:
        digest.update(VALUES[name].tobytes())
    return bytes(digest.hexdigest().encode())


def add_dataset(group: h5py.Group, name: str, values: npt.NDArray[Any]) -> h5py.Dataset:
    """Contiguous, allocated at once, never filled, without a time stamp."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    kind, space = h5py.h5t.py_create(values.dtype, logical=True), h5py.h5s.create_simple(values.shape)
    dataset = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, properties))
    dataset[...] = values
    return dataset


def make_hdf5(target: Any, version: int) -> int:
    """Write everything but the user block; return where the clips begin."""
    with h5py.File(
        target,
        "w",
        libver="earliest",
        userblock_size=4096,
        alignment_threshold=N * CLIP_BYTES,  # 1 MiB where the clips are more
        alignment_interval=4096,
    ) as file:
        for name, value in {**ATTRIBUTES, "format_version": min(version, 2)}.items():
            file.attrs[name] = np.bytes_(value) if isinstance(value, bytes) else value
        add_dataset(file, "classes", np.array(CLASSES, "S4"))
        videos = file.create_group("videos")
        for name, *_ in COLUMNS[version]:
            add_dataset(videos, name, VALUES[name]).attrs["meaning"] = np.bytes_(MEANINGS[name])
        return int(add_dataset(file, "clips", CLIPS).id.get_offset())


def seal(fields: bytes) -> bytes:
    body = fields.ljust(4088, b"\0")
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


def user_block(hdf5: bytes, clips_offset: int, version: int) -> bytes:
    around = hdf5[4096:clips_offset] + hdf5[clips_offset + N * CLIP_BYTES :]
    classes = b"".join(struct.pack("<Q", len(name)) + name for name in CLASSES)
    return seal(
        USER_BLOCK.pack(
            *(b"vidcache", min(version, 2), 1),  # format, format version, complete
            *(N, T, H, W, 0),  # the zero is reserved
            *(clips_offset, CLIP_BYTES, len(hdf5)),
            xxhash.xxh3_128_hexdigest(around).encode(),
            hash_columns(xxhash.xxh3_128(SPEC + classes), "path", "label", "source_hash", "clip_hash"),
            hash_columns(xxhash.xxh3_128(), "path", "split"),
        )
    )


def make_cache(version: int, path: Path, place: str = "memory") -> Path:
    """Made in memory, libhdf5 puts the columns elsewhere than in a file: both are of one format version."""
    memory = io.BytesIO()
    clips_offset = make_hdf5(memory if place == "memory" else path, version)
    hdf5 = memory.getvalue() if place == "memory" else path.read_bytes()
    path.write_bytes(user_block(hdf5, clips_offset, version) + hdf5[4096:])
    return path


def call(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("version", "place"), [(1, "memory"), (1, "disk"), (2, "memory"), (2, "disk"), (FIRST_2, "memory")]
)
def test_an_old_cache_is_read(tmp_path: Path, version: int, place: str) -> None:
    with CacheReader(make_cache(version, tmp_path / "old.h5", place)) as reader:
        assert Spec(2, 16, 20, SAMPLING.decode(), SCALING.decode()) == reader.spec
        assert ("Jump", "run", "\udce9t\udce9") == reader.classes
        assert (FINGERPRINT, SPLIT_HASH) == (reader.fingerprint, reader.split_hash)
        assert N == len(reader)
        known = {name for name, *_ in COLUMNS[version]}
        assert ("near_group" in known) == ("near_group" in reader.columns)
        for name, values in VALUES.items():
            if name == "near_group" and name not in known:
                continue
            values = values if name in known else np.zeros_like(values)
            assert values.dtype == reader.columns[name].dtype, name
            assert np.array_equal(values, reader.columns[name]), name
        assert COLUMNS[version][0][2] == [reader.path_of(row) for row in range(N)]
        parts = {split: reader.rows(split).tolist() for split in (None, "train", "val", "test", "unused")}
        assert {None: [0, 1, 3, 4], "train": [0], "val": [1], "test": [4], "unused": [3]} == parts
        assert np.array_equal(CLIPS[[4, 0, 3, 1]], reader.read([4, 0, 3, 1], verify=True))
        assert [0, 0, 1, 1, 2] == reader.labels.tolist()
        expected = {name: value.decode() if isinstance(value, bytes) else value for name, value in ATTRIBUTES.items()}
        assert {**expected, "format_version": min(version, 2)} == {name: reader.attributes[name] for name in ATTRIBUTES}


def test_what_is_written_today_is_the_same_cache_2_byte_for_byte(tmp_path: Path) -> None:
    """A change that makes this fail makes another format, and needs another version; other words of a meaning do not."""
    spec = Spec(2, 16, 20)
    rule = SplitConfig(GroupBy("regex", r"_(\d+)"), fractions=(0.6, 0.2, 0.2), seed=7, near_duplicates="report")
    plan = Manifest(
        spec=spec,
        classes=tuple(CLASSES),
        paths=tuple(COLUMNS_2[0][2]),
        labels=tuple(VALUES["label"].tolist()),
        source_bytes=tuple(VALUES["source_bytes"].tolist()),
        source_mtime_ns=tuple(VALUES["source_mtime_ns"].tolist()),
        attributes={**plan_attributes(spec, 0, rule, "8.1"), "vidcache_version": "0.1.0"},
    )
    with CacheWriter(tmp_path / "new.h5", plan) as writer:
        for row in range(N):
            record = np.zeros((), RECORD)
            for name in RECORD.names or ():
                record[name] = VALUES[name][row]
            if row != 2:
                writer.write_clip(row, CLIPS[row])
            writer.mark_done(row, record[()])
        writer.finish(VALUES["group"], VALUES["split"], VALUES["near_group"])

    written, made = (tmp_path / "new.h5").read_bytes(), make_cache(2, tmp_path / "old.h5").read_bytes()

    assert USER_BLOCK.unpack(made[: USER_BLOCK.size]) == USER_BLOCK.unpack(written[: USER_BLOCK.size])
    assert made == written


def test_near_duplicates_are_added_to_a_first_cache_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a split, and by a build, that change nothing else; nothing is decoded."""
    make_raw_of_cache_1(tmp_path / "raw", monkeypatch)
    cache = make_cache(FIRST_2, tmp_path / "old.h5")
    assert 0 == call(cli.main, "split", cache, "--dry-run").exit_code
    assert 0 == call(cli.main, "split", cache).exit_code
    with CacheReader(cache) as reader:
        assert [0, 0, -1, 0, 0] == reader.columns["near_group"].tolist()
    assert "nothing was written" in call(cli.main, "split", cache).stdout

    make_cache(FIRST_2, cache)
    options = BuildOptions(Spec(2, 16, 20), allow_tiny_classes=True)
    report = build_cache(tmp_path / "raw", cache, options)

    assert 5 == report.num_reused + report.num_decoded
    with CacheReader(cache) as reader:
        assert "near_group" in reader.columns
    assert build_cache(tmp_path / "raw", cache, options).up_to_date


def make_raw_of_cache_1(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Render the videos of the hand-made cache, which then knows their sizes and times."""
    stats = []
    for number, name in enumerate(COLUMNS_2[0][2]):
        path = raw / os.fsdecode(name)
        make_video(path.with_suffix(".mkv"), 3, first=number * 20, size="20x16").rename(path)
        stats.append(path.stat())
    monkeypatch.setitem(VALUES, "source_bytes", np.array([stat.st_size for stat in stats], "<i8"))
    monkeypatch.setitem(VALUES, "source_mtime_ns", np.array([stat.st_mtime_ns for stat in stats], "<i8"))


@pytest.mark.slow
def test_a_cache_1_that_was_split_anew_keeps_what_it_has_and_is_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_raw_of_cache_1(tmp_path / "raw", monkeypatch)
    cache = make_cache(1, tmp_path / "old.h5")
    for seed in (8, 9):  # twice: the second one is of a version 2
        assert 0 == call(cli.main, "split", cache, "--seed", seed).exit_code
        with CacheReader(cache) as reader:
            assert (2, 1, False) == (reader.header.format_version, reader.decoded_format, reader.is_current_format)
            assert FINGERPRINT == reader.fingerprint
            for name in VALUES.keys() - {"perceptual_hash", "split", "group", "near_group", "transfer", "primaries"}:
                assert np.array_equal(VALUES[name], reader.columns[name]), name
            assert not reader.columns["transfer"].any()
            for row in (0, 1, 3, 4):
                assert np.array_equal(CLIPS[row], reader.read([row], verify=True)[0])
                real = CLIPS[row][: VALUES["num_real"][row]]
                assert np.array_equal(perceptual_hash(real), reader.columns["perceptual_hash"][row])
    assert "nothing was written" in call(cli.main, "split", cache, "--seed", 9).stdout
    options = BuildOptions(Spec(2, 16, 20), allow_tiny_classes=True)

    report = build_cache(tmp_path / "raw", cache, options)

    assert (5, 0) == (report.num_decoded, report.num_reused)
    assert any(note.startswith("the older cache had format version 1: every video was") for note in report.notes)
    with CacheReader(cache) as reader:
        assert "decoded_format" not in reader.attributes
        assert reader.is_current_format
    assert build_cache(tmp_path / "raw", cache, options).up_to_date


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (cli.main, "leaks CACHE"),
        (cli.main, "preview CACHE --out OUT.png"),
        (cli.main, "analyze CACHE --out OUT"),
        (cli.main, "bench CACHE --device cpu"),
        (cli.main, "split CACHE --dry-run --seed 1"),
        (vidtrain, "CACHE --weights none --device cpu --epochs 1 --out OUT.pt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_commands_use_a_cache_1(tmp_path: Path, command: click.Command, arguments: str) -> None:
    cache = make_cache(1, tmp_path / "c.h5")

    words = [word.replace("CACHE", str(cache)).replace("OUT", str(tmp_path / "out")) for word in arguments.split()]

    result = call(command, *words)
    assert 0 == result.exit_code, result.output


# --- a checkpoint of format version 1 ---------------------------------------------------------


def weights() -> dict[str, torch.Tensor]:
    """Every clip is of class 2: all numbers are zero but for the bias; each tensor takes the room of one number."""
    with torch.device("meta"):
        state = torchvision.models.video.r3d_18(num_classes=3).state_dict()
    zeros = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in state.items()}
    return {**zeros, "fc.bias": torch.tensor([0.0, 1.0, 2.0])}


def checkpoint_1() -> dict[str, Any]:
    return {
        "format": "vidcache-checkpoint",
        "format_version": 1,
        "weights": weights(),
        "classes": [b"Jump", b"run", b"\xe9t\xe9"],
        "spec": {
            "num_frames": 2,
            "height": 16,
            "width": 20,
            "sampling": "uniform-with-endpoints",
            "scaling": "bicubic+accurate_rnd+full_chroma_int+bitexact",
        },
        "num_frames_used": 2,
        "fingerprint": FINGERPRINT,
        "split_hash": SPLIT_HASH,
        "config": {"lr": 1e-4, "balance": "both", "strength": {"flip": 0.5}, "init": None, "epochs": 30},
        "epoch": 3,
        "metrics": {"val_loss": 0.5, "val_accuracy": 1.0},
        "training": {"optimizer": {"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 1e-4}]}},
        "mean": (0.43216, 0.394666, 0.37645),
        "std": (0.22803, 0.22145, 0.216989),
        "versions": {"vidcache": "0.1.0", "torch": "2.14.1+cpu"},
    }


def make_checkpoint(path: Path, **changes: Any) -> Path:
    torch.save({**checkpoint_1(), **changes}, path)
    return path


def plain(value: Any) -> Any:
    """What can be compared with `==`: for a tensor its form and the numbers that are kept of it."""
    if isinstance(value, torch.Tensor):
        numbers = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
        return value.dtype, value.shape, value.stride(), numbers.tolist()
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def test_a_checkpoint_1_is_loaded(tmp_path: Path) -> None:
    loaded = Checkpoint.load(make_checkpoint(tmp_path / "old.pt"))

    expected = checkpoint_1()
    assert ("Jump", "run", "\udce9t\udce9") == loaded.classes
    assert Spec(2, 16, 20, SAMPLING.decode(), SCALING.decode()) == loaded.spec
    for name in expected.keys() - {"format", "format_version", "classes", "spec"}:
        assert plain(expected[name]) == plain(getattr(loaded, name)), name


def test_what_is_saved_today_is_the_same_checkpoint_1(tmp_path: Path) -> None:
    """A change that makes this fail makes another format, and needs another version."""
    expected = checkpoint_1()
    fields = {name: value for name, value in expected.items() if name not in ("format", "format_version")}
    classes = tuple(os.fsdecode(name) for name in fields["classes"])
    Checkpoint(**{**fields, "classes": classes, "spec": Spec(2, 16, 20)}).save(tmp_path / "new.pt")

    assert plain(expected) == plain(torch.load(tmp_path / "new.pt", weights_only=True))


# --- other versions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (0, "Use the vidcache that made it, or build it again under another name"),
        (3, "Use a newer vidcache"),
        (2**32 - 1, "Use a newer vidcache"),
    ],
)
def test_a_cache_of_another_version_is_refused(tmp_path: Path, version: int, remedy: str) -> None:
    """The version stays where it is, and so does the checksum; the rest is nothing that this vidcache knows."""
    path = tmp_path / "c.h5"
    path.write_bytes(seal(struct.pack("<8sI", b"vidcache", version) + b"\xa5" * 500) + b"another format" * 1000)

    result = call(cli.main, "info", path)

    expected = f"Error: {path}: format version {version}, but this vidcache reads versions 1 to 2. {remedy}\n"
    assert (4, expected) == (result.exit_code, result.stderr)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (0, "version 0, but this vidcache reads version 1. Use the vidcache that made it, or train again"),
        (2, "version 2, but this vidcache reads version 1. Use the vidcache that made it"),
        ("2", "version '2', but this vidcache reads version 1"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, version: object, message: str) -> None:
    path = make_checkpoint(tmp_path / "c.pt", format_version=version, what_version_1_does_not_know=1)

    with pytest.raises(MismatchError, match=message) as raised:
        Checkpoint.load(path)
    assert 5 == raised.value.exit_code
