"""Finding the videos: RAW/<class>/**/<video>, or RAW/{train,val,test}/<class>/**/<video>; class folder = label.

Only lists; opens nothing, follows no symbolic link.
"""

import dataclasses
import os
from collections import Counter
from pathlib import Path

from vidcache.cache.layout import Split
from vidcache.errors import InputError
from vidcache.files import modification_time_ns
from vidcache.preprocess.split_files import SPLIT_FOLDERS
from vidcache.text import printable

# Text and pictures that lie beside videos in real data sets. Everything else is tried: a video is
# known by its content, not by its name, and a file that is none becomes a listed failure.
SIDECARS = frozenset(
    f".{ending}"
    for ending in (
        "txt md json jsonl csv tsv xml yaml yml log html pdf srt vtt ass sub nfo npy npz pkl py sh zip tar gz md5 "
        "sha256 jpg jpeg db ini h5 pt"
    ).split()
)

LAYOUTS = ("auto", "classes", "splits")


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """One candidate.

    Attributes:
        path: Below the raw folder, bytes as the file system has them, "/" between the parts.
        class_name: The part of the path that is the class folder.
        num_bytes: Size; 0 for what is no regular file.
        mtime_ns: Modification time.
    """

    path: bytes
    class_name: bytes
    num_bytes: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True)
class Sources:
    """Everything below a raw folder.

    Attributes:
        videos: Sorted by path.
        skipped: How many files were no candidates, by reason.
        class_depth: Which part of a path is the class: 0 in RAW/<class>/, 1 in RAW/<split>/<class>/.
    """

    videos: tuple[VideoFile, ...]
    skipped: dict[str, int]
    class_depth: int = 0

    @property
    def classes(self) -> tuple[bytes, ...]:
        """Class names in label order."""
        return tuple(sorted({video.class_name for video in self.videos}))


def find_videos(raw: Path, layout: str = "auto") -> Sources:
    """List the candidates below a raw folder.

    Hidden files and folders, text and still-picture sidecars, and files outside a class folder are
    counted and left out. A symbolic link, FIFO or device inside a class folder is a candidate: it
    will fail as `not_a_regular_file`, so that nothing disappears silently.

    Args:
        raw: Folder of class folders.
        layout: "classes": the folders in it are the classes. "splits": they are train, val and test, and hold
            the classes. "auto": splits, when there are at least train and one other, nothing else, and no
            candidate lies directly in them.

    Raises:
        InputError: The folder cannot be read or holds no candidate.
    """
    skipped: Counter[str] = Counter()
    found: list[tuple[bytes, int, int]] = []
    root = os.fsencode(raw)
    try:
        for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
            if entry.name.startswith(b"."):
                skipped["hidden"] += 1
            elif entry.is_dir(follow_symlinks=False):
                found += _walk(root, entry.name, skipped)
            else:
                skipped["outside a class folder"] += 1
    except OSError as error:
        raise InputError(f"{printable(raw)}: {error.strerror}, expected a folder RAW/<class>/<video>") from None
    depth = _class_depth([path for path, _, _ in found]) if layout == "auto" else LAYOUTS.index(layout) - 1
    videos = []
    for path, num_bytes, mtime_ns in sorted(found):
        folders = path.split(b"/")[:-1]
        if len(folders) <= depth or (depth and folders[0] not in SPLIT_FOLDERS):
            skipped["outside a class folder"] += 1
        else:
            videos.append(VideoFile(path, folders[depth], num_bytes, mtime_ns))
    if not videos:
        expected = "/<train, val or test>" * depth
        raise InputError(f"{printable(raw)}: no videos found, expected {printable(raw)}{expected}/<class>/<video>")
    return Sources(tuple(videos), dict(skipped), depth)


def list_videos(folder: Path) -> tuple[tuple[Path, ...], dict[str, int]]:
    """List the candidates anywhere below a folder, by the rules of `find_videos`, class folders apart.

    Returns:
        The candidates, sorted by path as bytes, and how many files were none, by reason.

    Raises:
        InputError: The folder cannot be read or holds no candidate.
    """
    skipped: Counter[str] = Counter()
    root = os.fsencode(folder)
    try:
        found = sorted(_walk(root, b".", skipped))
    except OSError as error:
        raise InputError(f"{printable(folder)}: {error.strerror}, expected a folder with videos") from None
    if not found:
        left_out = "".join(f", {count} {reason}" for reason, count in sorted(skipped.items()))
        raise InputError(f"{printable(folder)}: no videos found{left_out}, expected at least one in it or below")
    return tuple(Path(os.fsdecode(os.path.join(root, path))) for path, _, _ in found), dict(skipped)


def _class_depth(paths: list[bytes]) -> int:
    """Tell RAW/<split>/<class>/<video> from RAW/<class>/<video>."""
    parts = [path.split(b"/") for path in paths]
    splits = {SPLIT_FOLDERS.get(first) for first, *_ in parts}
    given = None not in splits and Split.TRAIN in splits and len(splits) > 1
    return int(given and all(len(folders) > 2 for folders in parts))


def _walk(root: bytes, top: bytes, skipped: Counter[str]) -> list[tuple[bytes, int, int]]:
    """List path, size and time of the candidates below one folder of the root."""
    found = []
    folders = [top]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                path = folder + b"/" + entry.name
                if entry.name.startswith(b"."):
                    skipped["hidden"] += 1
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif os.path.splitext(os.fsdecode(entry.name))[1].lower() in SIDECARS:
                    skipped["not a video by its name"] += 1
                else:
                    facts = entry.stat(follow_symlinks=False)
                    size = facts.st_size if entry.is_file(follow_symlinks=False) else 0
                    found.append((path, size, modification_time_ns(facts)))
    return found
