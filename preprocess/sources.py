"""Finding the videos: RAW/<class>/**/<video>, class folder = label.

Only lists; opens nothing, follows no symbolic link.
"""

import dataclasses
import os
from collections import Counter
from pathlib import Path

from vidcache.errors import InputError
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


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """One candidate.

    Attributes:
        path: Below the raw folder, bytes as the file system has them, "/" between the parts.
        class_name: First part of the path.
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
    """

    videos: tuple[VideoFile, ...]
    skipped: dict[str, int]

    @property
    def classes(self) -> tuple[bytes, ...]:
        """Class names in label order."""
        return tuple(sorted({video.class_name for video in self.videos}))


def find_videos(raw: Path) -> Sources:
    """List the candidates below a raw folder.

    Hidden files and folders, text and still-picture sidecars, and files outside a class folder are
    counted and left out. A symbolic link, FIFO or device inside a class folder is a candidate: it
    will fail as `not_a_regular_file`, so that nothing disappears silently.

    Args:
        raw: Folder of class folders.

    Raises:
        InputError: The folder cannot be read or holds no candidate.
    """
    skipped: Counter[str] = Counter()
    videos: list[VideoFile] = []
    root = os.fsencode(raw)
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        for entry in entries:
            if entry.name.startswith(b"."):
                skipped["hidden"] += 1
            elif entry.is_dir(follow_symlinks=False):
                videos += _walk(root, entry.name, skipped)
            else:
                skipped["outside a class folder"] += 1
    except OSError as error:
        raise InputError(f"{printable(raw)}: {error.strerror}, expected a folder RAW/<class>/<video>") from None
    if not videos:
        raise InputError(f"{printable(raw)}: no videos found, expected {printable(raw)}/<class>/<video>")
    return Sources(tuple(sorted(videos, key=lambda video: video.path)), dict(skipped))


def _walk(root: bytes, class_name: bytes, skipped: Counter[str]) -> list[VideoFile]:
    videos = []
    folders = [class_name]
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
                    videos.append(VideoFile(path, class_name, size, facts.st_mtime_ns))
    return videos
