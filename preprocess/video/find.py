"""Finding the videos and their classes: RAW/<class>/, RAW/{train,val,test}/<class>/, or a list of labels.

Only lists; opens no video.
"""

import dataclasses
import os
import stat
from collections import Counter
from pathlib import Path

from vidcache.errors import InputError
from vidcache.files import modification_time_ns
from vidcache.preprocess.video.classes import (
    LISTED,
    Labels,
    count_folders,
    find_class_depth,
    join_few,
    layout_notes,
    read_labels,
    split_of_folder,
)
from vidcache.text import plural, printable

# Text and pictures that lie beside videos in real data sets. Everything else is tried: a video is
# known by its content, not by its name, and a file that is none becomes a listed failure.
SIDECARS = frozenset(
    f".{ending}"
    for ending in (
        "txt md json jsonl csv tsv xml yaml yml log html pdf srt vtt ass sub nfo npy npz pkl py sh zip tar gz md5 "
        "sha256 jpg jpeg db ini h5 pt"
    ).split()
)
_LOOSE_ADVICE = "or give the labels by a CSV with the columns path,label: --labels"


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """One candidate."""

    path: bytes  # below the raw folder, as the file system has it, "/" between the parts
    class_name: bytes  # its class folder, or the label that a list gives it
    num_bytes: int  # 0 for what is no regular file
    mtime_ns: int


@dataclasses.dataclass(frozen=True)
class Sources:
    """Everything below a raw folder."""

    videos: tuple[VideoFile, ...]  # sorted by path
    skipped: dict[str, int]  # how many files were no candidates, by reason
    class_depth: int = 0  # 0: RAW/<class>/, 1: RAW/<split>/<class>/, LISTED: a list of labels says the class
    notes: tuple[str, ...] = ()  # what the user should know, a sentence each
    labels: Labels | None = None

    @property
    def classes(self) -> tuple[bytes, ...]:
        """Class names in label order."""
        return tuple(sorted({video.class_name for video in self.videos}))


def find_videos(raw: Path, layout: str = "auto", labels: Path | None = None, *, follow_links: bool = False) -> Sources:
    """List the candidates below a raw folder.

    Hidden files and folders, text and still pictures, and files outside a class folder are counted and left out. A
    FIFO, a device or a link to a file is a candidate: it will fail as `not_a_regular_file`, and so does not vanish.

    Args:
        raw: Folder of class folders.
        layout: "classes": its folders are the classes. "splits": they are train, val and test. "auto": by their names.
        labels: CSV that names the videos and their classes; folders then mean nothing, and other videos are left out.
        follow_links: Follow symbolic links to folders and files. Not followed, they are named in the notes.

    Raises:
        InputError: The folder cannot be read or holds no candidate; the names of its folders can be read in two
            ways; a link that was not followed is where a class or a split should be; or the list is wrong.
    """
    name, tree = printable(raw), _walk(raw, follow_links=follow_links)
    notes, paths = tree.link_notes(), [path for path, _, _ in tree.files]
    if labels is not None:
        listed = read_labels(labels, paths, [link.path for link in tree.links])
        depth, classes, reason = LISTED, listed.classes, "not in the list of labels"
        unlisted = [path for path, class_name in zip(paths, classes, strict=True) if class_name is None]
        if unlisted:
            files = f"{plural(len(unlisted), 'file')} not in {printable(listed.file)}"
            notes.append(f"{files}, left out: for example {printable(unlisted[0])}")
    else:
        listed, folders, reason = None, count_folders(paths), "outside a class folder"
        _check_links(name, tree, 0, layout)
        depth = find_class_depth(name, folders, layout)
        _check_links(name, tree, depth, layout)
        classes = tuple(_class_of(path, depth) for path in paths)
        loose = [path for path in paths if b"/" not in path]
        if loose:
            notes.append(
                f"{plural(len(loose), 'file')} directly in the raw folder, in no class, left out: for example "
                f"{printable(loose[0])}. Move them into the folder of their class, {_LOOSE_ADVICE}"
            )
        notes += layout_notes(folders, depth)
        empty = sorted({folder for folder in tree.folders if folder.count(b"/") <= depth} - _filled(paths, depth))
        if empty:
            notes.append(f"{plural(len(empty), 'folder')} without a video: {join_few([*map(printable, empty)])}")
        if not any(classes) and loose:
            raise InputError(
                f"{name}: no videos in class folders, but {len(paths):,} files elsewhere, for example "
                f"{printable(paths[0])}. Put them into {name}/<class>/ or {name}/<train, val or test>/<class>/, "
                f"{_LOOSE_ADVICE}"
            )
    videos = tuple(
        VideoFile(path, class_name, num_bytes, mtime_ns)
        for (path, num_bytes, mtime_ns), class_name in zip(tree.files, classes, strict=True)
        if class_name is not None
    )
    if not videos:
        layout_name = f"{name}{'/<train, val or test>' if depth == 1 else ''}/<class>/<video>"
        raise InputError(f"{name}: no videos found. Put them into {layout_name}")
    if len(videos) < len(paths):
        tree.skipped[reason] += len(paths) - len(videos)
    return Sources(videos, dict(tree.skipped), depth, tuple(notes), listed)


def list_videos(folder: Path, *, follow_links: bool = False) -> tuple[tuple[Path, ...], dict[str, int], list[str]]:
    """List the candidates anywhere below a folder, sorted by path; raises InputError if there are none.

    Also returns how many files were no candidates, by reason, and what the user should know.
    """
    tree = _walk(folder, follow_links=follow_links)
    notes, root = tree.link_notes(), os.fsencode(folder)
    if not tree.files:
        left_out = "".join(f", {count} {reason}" for reason, count in sorted(tree.skipped.items()))
        raise InputError(f"{printable(folder)}: no videos found{left_out}{''.join(f'. {note}' for note in notes)}")
    return tuple(Path(os.fsdecode(os.path.join(root, path))) for path, _, _ in tree.files), dict(tree.skipped), notes


def _class_of(path: bytes, depth: int) -> bytes | None:
    folders = path.split(b"/")[:-1]
    if len(folders) <= depth or (depth and split_of_folder(folders[0]) is None):
        return None
    return folders[depth]


def _filled(paths: list[bytes], depth: int) -> set[bytes]:
    """Folders, down to a depth, that videos are in or below."""
    return {b"/".join(path.split(b"/")[: level + 1]) for path in paths for level in range(depth + 1)}


def _check_links(raw: str, tree: "Tree", depth: int, layout: str) -> None:
    """Refuse a link without which a class or a split is missing: it would be another data set."""
    filled = _filled([path for path, _, _ in tree.files if path.count(b"/") > depth], depth)
    lost = []
    for link in tree.links:
        parts = link.path.split(b"/")
        matters = (depth == 0 and layout != "splits") or split_of_folder(parts[0]) is not None
        if matters and not link.is_file and b"/".join(parts[: depth + 1]) not in filled:
            lost.append(link)
    if not lost:
        return
    if any(link.reason for link in lost):
        advice = "Put a folder in the place of each, or take it out of the raw folder"
    else:
        advice = "Follow links with --follow-links, or take them out of the raw folder if they are no part of the data"
    links = plural(len(lost), "link")
    raise InputError(f"{raw}: {links} in the place of classes or splits, not followed: {join_few(lost)}. {advice}")


@dataclasses.dataclass(frozen=True)
class Link:
    """A symbolic link, or a folder behind one, that was not followed."""

    path: bytes  # below the root
    target: bytes  # as the link says; b"" for a folder behind a link
    reason: str = ""  # why not, where links are followed
    is_file: bool = False  # it leads to something that is no folder: it is a candidate too, and will fail

    def __str__(self) -> str:
        arrow = f" -> {printable(self.target)}" if self.target else ""
        return f"{printable(self.path)}{arrow}{f' ({self.reason})' if self.reason else ''}"


class Tree:
    """What is below a folder; followed, no link leads twice into one folder, nor above it: every walk ends."""

    def __init__(self, root: bytes, *, follow_links: bool) -> None:
        self.root, self.follow_links = root, follow_links
        self.files: list[tuple[bytes, int, int]] = []  # candidates: path, size (0: not regular), modification time
        self.folders: list[bytes] = []  # that were entered
        self.links: list[Link] = []  # that were not followed
        self.copies: list[tuple[bytes, bytes]] = []  # two paths of one file, where links are followed
        self.skipped: Counter[str] = Counter()  # files that are no candidates, by reason
        self._to_follow: list[bytes] = []
        self._first_folders: dict[tuple[int, int], bytes] = {}
        self._first_files: dict[tuple[int, int], bytes] = {}
        self._enter(b"")
        while self._to_follow:  # after all folders of the root: what lies in it has its path there
            paths, self._to_follow = sorted(self._to_follow), []
            for path in paths:
                self._follow(path)
        self.files.sort()
        self.links.sort(key=lambda link: link.path)

    def link_notes(self) -> list[str]:
        """Name the links that were not followed, and the files that are reached twice."""
        notes = []
        if self.links:
            advice = "" if self.follow_links else ". Follow them with --follow-links"
            were = "was" if len(self.links) == 1 else "were"
            notes.append(f"{plural(len(self.links), 'link')} {were} not followed: {join_few(self.links)}{advice}")
        if self.copies:
            pairs = [f"{printable(first)} = {printable(second)}" for first, second in self.copies]
            notes.append(f"{plural(len(pairs), 'file')} can be reached in two ways: {join_few(pairs)}")
        return notes

    def _enter(self, top: bytes) -> None:
        folders = [top]
        while folders:
            folder = folders.pop()
            full = os.path.join(self.root, folder) if folder else self.root
            if self.follow_links and self._was_entered(folder, full):
                continue
            if folder:
                self.folders.append(folder)
            with os.scandir(full) as entries:
                for entry in entries:
                    path = folder + b"/" + entry.name if folder else entry.name
                    is_folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
                    if entry.name.startswith(b"."):
                        self.skipped["hidden"] += 1
                    elif not is_folder and os.path.splitext(os.fsdecode(entry.name))[1].lower() in SIDECARS:
                        self.skipped["not a video by its name"] += 1
                    elif entry.is_symlink():
                        self._add_link(path, entry, is_folder=is_folder)
                    elif is_folder:
                        folders.append(path)
                    else:
                        self._add(path, entry.stat(follow_symlinks=False))

    def _follow(self, path: bytes) -> None:
        """Walk the folder that a link leads to, unless it holds the link or the root, or was walked."""
        full = os.path.join(self.root, path)
        target = os.path.realpath(full)
        inside = os.path.realpath(os.path.dirname(full)), os.path.realpath(self.root)
        if any(os.path.commonpath([target, folder]) == target for folder in inside):
            self.links.append(Link(path, os.readlink(full), "leads to a folder above it"))
        else:
            self._enter(path)

    def _was_entered(self, folder: bytes, full: bytes) -> bool:
        facts = os.stat(full)
        first = self._first_folders.setdefault((facts.st_dev, facts.st_ino), folder)
        if first == folder:
            return False
        target = os.readlink(full) if os.path.islink(full) else b""
        self.links.append(Link(folder, target, f"the same folder as {printable(first)}"))
        return True

    def _add_link(self, path: bytes, entry: os.DirEntry[bytes], *, is_folder: bool) -> None:
        facts = entry.stat(follow_symlinks=False)
        if not self.follow_links:
            is_file = not is_folder and os.path.exists(entry.path)
            self.links.append(Link(path, os.readlink(entry.path), is_file=is_file))
        elif is_folder:
            self._to_follow.append(path)
        else:
            try:
                facts = os.stat(entry.path)
            except OSError:
                self.links.append(Link(path, os.readlink(entry.path), "leads nowhere"))
        if not is_folder:
            self._add(path, facts)

    def _add(self, path: bytes, facts: os.stat_result) -> None:
        is_regular = stat.S_ISREG(facts.st_mode)
        self.files.append((path, facts.st_size if is_regular else 0, modification_time_ns(facts)))
        if self.follow_links and is_regular:
            first = self._first_files.setdefault((facts.st_dev, facts.st_ino), path)
            if first != path:
                self.copies.append((first, path))


def _walk(folder: Path, *, follow_links: bool) -> Tree:
    try:
        return Tree(os.fsencode(folder), follow_links=follow_links)
    except OSError as error:
        raise InputError(f"{printable(error.filename or folder)}: {error.strerror}. Name a folder of videos") from None
