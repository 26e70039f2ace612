"""Caches made to harm: nothing but the file is read, no code runs, no memory is asked for.

The header and its hashes are right in all of them, as an attacker would make them.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from h5py._objects import phil

from tests.helpers import forge_cache, make_cache
from vidcache.cache import format as layout
from vidcache.cache.reader import CacheReader
from vidcache.cli import main
from vidcache.errors import CacheError
from vidcache.spec import Spec

SPEC = Spec(4, 16, 16)
SECRET = b"the secret of another file " * 400


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    return make_cache(tmp_path / "c.h5", {"a": 4, "b": 4}, spec=SPEC)


def _replace(name: str, **settings: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        settings_ = {"shape": file[name].shape, "dtype": file[name].dtype, **settings}
        del file[name]
        file.create_dataset(name, **settings_)

    return change


def _link(name: str, link: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return change


def virtual(name: str) -> Callable[[h5py.File], None]:
    """A data set that is part of another file."""

    def change(file: h5py.File) -> None:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        made = h5py.VirtualLayout(shape=shape, dtype=dtype)
        made[:] = h5py.VirtualSource("other.h5", "x", shape=shape)
        file.create_virtual_dataset(name, made)

    return change


def compact(file: h5py.File) -> None:
    """A data set inside its own header."""
    shape, dtype = file["videos/label"].shape, file["videos/label"].dtype
    del file["videos/label"]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(dtype)
    h5py.h5d.create(file["videos"].id, b"label", kind, space, properties)


def moved(file: h5py.File) -> None:
    """Clips that are not where the header says."""
    file["others"] = file["clips"][:]
    del file["clips"]
    file.move("others", "clips")


def cycle(file: h5py.File) -> None:
    """A group that holds itself."""
    del file["videos/label"]
    file["videos/label"] = file["videos"]


def forged(name: str, value: object) -> Callable[[h5py.File], None]:
    """A number that no build writes, in row 3."""

    def change(file: h5py.File) -> None:
        file[f"videos/{name}"][3] = value

    return change


LABEL = "/videos/label is no contiguous"
MALICIOUS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "external storage, absolute": (_replace("videos/label", external=[("/etc/passwd", 0, 32)]), LABEL),
    "external storage, relative": (_replace("videos/label", external=[("secret", 0, 32)]), LABEL),
    "external storage of the clips": (_replace("clips", external=[("secret", 0, h5py.h5f.UNLIMITED)]), "/clips is no"),
    "external storage, /proc": (_replace("videos/label", external=[("/proc/self/environ", 0, 32)]), LABEL),
    "external link": (_link("classes", h5py.ExternalLink("other.h5", "/x")), "/classes is a link"),
    "external link to a group": (_link("videos", h5py.ExternalLink("other.h5", "/")), "/videos is a link"),
    "soft link": (_link("videos/label", h5py.SoftLink("/videos/width")), "/videos/label is a link"),
    "soft link to groups": (_link("videos/near_group", h5py.SoftLink("/videos/width")), "/videos/near_group is a link"),
    "virtual data set": (virtual("videos/label"), LABEL),
    "hard link in a circle": (cycle, LABEL),
    "chunks": (_replace("videos/label", chunks=(2,)), LABEL),
    "gzip": (_replace("videos/label", chunks=(2,), compression="gzip"), LABEL),
    "checksum filter": (_replace("videos/label", chunks=(2,), fletcher32=True), LABEL),
    "compact": (compact, LABEL),
    "a tebibyte without storage": (_replace("videos/label", shape=(2**38,), chunks=(2,)), LABEL),
    "a tebibyte, contiguous": (_replace("videos/label", shape=(2**38,)), "/videos/label lies at"),
    "a column without storage": (_replace("videos/width"), r"/videos/width lies at \d+, outside the file"),
    "a longer column": (_replace("videos/label", shape=(9,), data=np.zeros(9)), r"int32 \(9,\), expected int32 \(8,\)"),
    "a wider column": (_replace("videos/label", dtype="<i8", data=np.zeros(8)), r"int64 \(8,\), expected int32 \(8,\)"),
    "a missing column": (lambda file: file.__delitem__("videos/split"), "/videos/split is missing"),
    "a missing attribute": (lambda file: file.attrs.__delitem__("sampling"), "no valid cache structure"),
    "another label": (forged("label", 1), "fingerprint is .*, expected"),
    "classes beyond the end": (_replace("classes", shape=(1 << 20,)), r"/classes lies at \d+, outside the file"),
    "strings of any length": (_replace("videos/error", dtype=h5py.string_dtype()), "/videos/error lies at"),
    "clips elsewhere": (moved, r"/clips is not uint8 \(8, 4, 16, 16, 3\) at byte"),
    "clips of another type": (_replace("clips", dtype="<f4"), "/clips"),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_it_is_refused_in_one_line(cache: Path, name: str) -> None:
    change, message = MALICIOUS[name]

    forge_cache(cache, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    result = CliRunner().invoke(main, ["info", str(cache)])

    assert 4 == result.exit_code
    assert re.search(message, result.stderr)
    assert 1 == len(result.stderr.splitlines())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    assert not any(word in result.stderr for word in ("secret of another", "root:"))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize(
    "name", ["external storage, relative", "external storage of the clips", "external link", "external link to a group"]
)
def test_no_other_file_is_opened(cache: Path, name: str, tmp_path: Path) -> None:
    with h5py.File(cache.with_name("other.h5"), "w") as other:
        other["x"] = np.zeros(3)
    forge_cache(cache, MALICIOUS[name][0])
    code = f"from vidcache.cache.reader import CacheReader; CacheReader({str(cache)!r})"
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-e", "trace=open,openat,openat2", "-o", trace, sys.executable, "-c", code]

    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert "CacheError" in ended.stderr
    opened = re.findall(r'"([^"]*)"', trace.read_text())
    assert any(path.endswith("c.h5") for path in opened)
    assert not [path for path in opened if path.endswith(("secret", "other.h5"))]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
def test_no_plugin_runs(cache: Path, tmp_path: Path) -> None:
    folder, marker = tmp_path / "plugins", tmp_path / "it_ran"
    folder.mkdir()
    source = tmp_path / "plugin.c"
    source.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) static void run(void)"
        f' {{ FILE *f = fopen("{marker}", "w"); if (f) fclose(f); }}\n'
        "int H5PLget_plugin_type(void) { return 0; }\nconst void *H5PLget_plugin_info(void) { return 0; }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "libevil.so", source], check=True)

    def with_filter(file: h5py.File) -> None:
        shape, dtype = file["videos/label"].shape, file["videos/label"].dtype
        del file["videos/label"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(shape)
        properties.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL)
        space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(dtype)
        dataset = h5py.h5d.create(file["videos"].id, b"label", kind, space, properties)
        dataset.write_direct_chunk((0,), bytes(32), filter_mask=0)

    forge_cache(cache, with_filter)
    environment = {**os.environ, "HDF5_PLUGIN_PATH": str(folder)}
    naive = f"import h5py; h5py.File({str(cache)!r})['videos/label'][:]"
    ours = f"from vidcache.cache.reader import CacheReader; CacheReader({str(cache)!r})"

    subprocess.run([sys.executable, "-c", naive], env=environment, capture_output=True)
    assert marker.exists()  # h5py alone runs it
    marker.unlink()
    ended = subprocess.run([sys.executable, "-c", ours], env=environment, capture_output=True, text=True)

    assert "CacheError" in ended.stderr
    assert "no contiguous, unfiltered" in ended.stderr
    assert not marker.exists()


def test_another_thread_can_use_hdf5_meanwhile(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """h5py's functions for plugins do not take its lock: a write of another thread failed, or the process crashed."""
    is_free: list[bool] = []

    def try_lock() -> bool:
        taken = phil.acquire(False)
        if taken:
            phil.release()
        return bool(taken)

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def check(*arguments: Any) -> Any:
            with ThreadPoolExecutor(1) as other:
                is_free.append(other.submit(try_lock).result())
            return call(*arguments)

        return check

    for name in ("size", "get", "remove", "append"):
        monkeypatch.setattr(h5py.h5pl, name, watched(name, getattr(h5py.h5pl, name)))
    CacheReader(cache).close()

    assert len(is_free) >= 4
    assert not any(is_free)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("label", 2, "label of row 3 is 2, expected 0 to 1"),
        ("label", -1, "label of row 3 is -1, expected 0 to 1"),
        ("label", 2**30, "label of row 3 is 1073741824, expected 0 to 1"),
        ("status", 9, "status of row 3 is 9, expected 0 to 2"),
        ("split", 77, "split of row 3 is 77, expected 0 to 3"),
        ("near_group", 4, "near_group of row 3 is 4, which is not the first row of a group"),
        ("near_group", -1, "near_group of row 3 is -1, which is not the first row of a group"),
        ("num_real", 5, "num_real of row 3 is 5, expected 0 to 4"),
        ("mean_rgb", [1, np.nan, 2], r"mean_rgb of row 3 is \[1.0, nan, 2.0\], expected 0 to 255"),
        ("mean_rgb", [1, 256, 2], r"mean_rgb of row 3 is \[1.0, 256.0, 2.0\], expected 0 to 255"),
    ],
)
def test_numbers_that_no_build_writes_are_refused(cache: Path, name: str, value: object, message: str) -> None:
    """With fingerprint and split hash of the forged columns: nothing but the number is wrong."""
    with CacheReader(cache) as reader:
        columns, names = {**reader.columns, name: reader.columns[name].copy()}, [b"a", b"b"]
    columns[name][3] = value
    hashes = {"fingerprint": layout.fingerprint_of(SPEC, names, columns), "split_hash": layout.split_hash_of(columns)}
    forge_cache(cache, forged(name, value), **hashes)

    with pytest.raises(CacheError, match=rf"c\.h5: {message}\. Build it again with --overwrite"):
        CacheReader(cache)
