"""Every file below a folder that may be a video, and every symbolic link; links are followed only when asked.

Only lists; opens no file.
"""

import dataclasses
import os
import stat
from collections import Counter

from vidcache.files import modification_time_ns
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
class Link:
    """A symbolic link, or a folder behind one, that was not followed.

    Attributes:
        path: Below the root.
        target: As the link says; b"" for a folder behind a link.
        reason: Why not, where links are followed; "" where they are not.
        is_file: It leads to something that is no folder: it is a candidate too, and will fail.
    """

    path: bytes
    target: bytes
    reason: str = ""
    is_file: bool = False

    def __str__(self) -> str:
        arrow = f" -> {printable(self.target)}" if self.target else ""
        return f"{printable(self.path)}{arrow}{f' ({self.reason})' if self.reason else ''}"


@dataclasses.dataclass(frozen=True)
class Tree:
    """What is below a folder.

    Attributes:
        files: Path below it, size (0 for what is no regular file) and modification time of the candidates, sorted.
        folders: Paths of all folders below it that were entered.
        links: What was not followed, sorted by path.
        copies: Two paths of one file, where links are followed.
        skipped: How many files are no candidates, by reason.
    """

    files: list[tuple[bytes, int, int]]
    folders: list[bytes]
    links: list[Link]
    copies: list[tuple[bytes, bytes]]
    skipped: Counter[str]


def walk(root: bytes, *, follow_links: bool = False) -> Tree:
    """List what is below a folder.

    Hidden files and folders, text and still pictures are counted and left out. Followed, no link leads twice into
    one folder, nor into one above it: every walk ends, and what lies below the root has its path there.

    Raises:
        OSError: A folder cannot be read; it has the name.
    """
    walker = _Walker(root, follow_links)
    walker.enter(b"", own=True)
    while walker.to_follow:
        found, walker.to_follow = sorted(walker.to_follow), []
        for path in found:
            walker.follow(path)
    tree = walker.tree
    tree.files.sort()
    tree.links.sort(key=lambda link: link.path)
    return tree


class _Walker:
    def __init__(self, root: bytes, follow_links: bool) -> None:
        self.root, self.follow_links = root, follow_links
        self.tree = Tree([], [], [], [], Counter())
        self.to_follow: list[bytes] = []
        self._folders: dict[tuple[int, int], bytes] = {}
        self._files: dict[tuple[int, int], bytes] = {}

    def enter(self, top: bytes, *, own: bool) -> None:
        """Walk a folder; `own`: it and all below it belong to the root, not to what a link leads to."""
        folders = [top]
        while folders:
            folder = folders.pop()
            full = os.path.join(self.root, folder) if folder else self.root
            if self.follow_links and self._was_entered(folder, os.stat(full), own=own):
                continue
            if folder:
                self.tree.folders.append(folder)
            with os.scandir(full) as entries:
                for entry in entries:
                    path = folder + b"/" + entry.name if folder else entry.name
                    if entry.name.startswith(b"."):
                        self.tree.skipped["hidden"] += 1
                    elif entry.is_symlink():
                        self._meet(path, entry)
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    elif _is_sidecar(entry.name):
                        self.tree.skipped["not a video by its name"] += 1
                    else:
                        self._add(path, entry.stat(follow_symlinks=False))

    def follow(self, path: bytes) -> None:
        """Walk the folder that a link leads to, unless it holds the link or the root, or was walked."""
        full = os.path.join(self.root, path)
        target = os.path.realpath(full)
        inside = os.path.realpath(os.path.dirname(full)), os.path.realpath(self.root)
        if any(os.path.commonpath([target, folder]) == target for folder in inside):
            self.tree.links.append(Link(path, os.readlink(full), "leads to a folder above it"))
        else:
            self.enter(path, own=False)

    def _was_entered(self, folder: bytes, facts: os.stat_result, *, own: bool) -> bool:
        first = self._folders.setdefault((facts.st_dev, facts.st_ino), folder)
        if own or first == folder:
            return False
        full = os.path.join(self.root, folder)
        target = os.readlink(full) if os.path.islink(full) else b""
        self.tree.links.append(Link(folder, target, f"the same folder as {printable(first)}"))
        return True

    def _meet(self, path: bytes, entry: os.DirEntry[bytes]) -> None:
        is_folder = os.path.isdir(entry.path)
        if not is_folder and _is_sidecar(entry.name):
            self.tree.skipped["not a video by its name"] += 1
        elif not self.follow_links:
            is_file = not is_folder and os.path.exists(entry.path)
            self.tree.links.append(Link(path, os.readlink(entry.path), is_file=is_file))
            if not is_folder:
                self._add(path, entry.stat(follow_symlinks=False))
        elif is_folder:
            self.to_follow.append(path)
        else:
            try:
                self._add(path, os.stat(entry.path))
            except OSError:
                self.tree.links.append(Link(path, os.readlink(entry.path), "leads nowhere"))
                self._add(path, entry.stat(follow_symlinks=False))

    def _add(self, path: bytes, facts: os.stat_result) -> None:
        regular = stat.S_ISREG(facts.st_mode)
        self.tree.files.append((path, facts.st_size if regular else 0, modification_time_ns(facts)))
        if self.follow_links and regular:
            first = self._files.setdefault((facts.st_dev, facts.st_ino), path)
            if first != path:
                self.tree.copies.append((first, path))


def _is_sidecar(name: bytes) -> bool:
    return os.path.splitext(os.fsdecode(name))[1].lower() in SIDECARS
