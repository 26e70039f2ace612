"""Finding the videos and their classes: RAW/<class>/, RAW/{train,val,test}/<class>/, or a list of labels.

Only lists; opens no video.
"""

import dataclasses
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vidcache.cli import option
from vidcache.errors import InputError
from vidcache.files import modification_time_ns
from vidcache.preprocess.video.classes import (
    LISTED,
    Labels,
    find_class_depth,
    layout_notes,
    read_labels,
    shown,
    top_folders,
)
from vidcache.preprocess.video.lists import split_of_folder
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


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """One candidate.

    Attributes:
        path: Below the raw folder, bytes as the file system has them, "/" between the parts.
        class_name: Its class folder, or the label that a list gives it.
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
        class_depth: Which part of a path is the class: 0 in RAW/<class>/, 1 in RAW/<split>/<class>/; -1 where a list
            of labels says it.
        notes: What the user should know, a sentence each.
        labels: The list of labels, if there is one.
    """

    videos: tuple[VideoFile, ...]
    skipped: dict[str, int]
    class_depth: int = 0
    notes: tuple[str, ...] = ()
    labels: Labels | None = None

    @property
    def classes(self) -> tuple[bytes, ...]:
        """Class names in label order."""
        return tuple(sorted({video.class_name for video in self.videos}))


def find_videos(raw: Path, layout: str = "auto", labels: Path | None = None, *, follow_links: bool = False) -> Sources:
    """List the candidates below a raw folder.

    Hidden files and folders, text and still-picture sidecars, and files outside a class folder are
    counted and left out. A FIFO, a device or a link to a file is a candidate: it will fail as
    `not_a_regular_file`, so that nothing disappears silently.

    Args:
        raw: Folder of class folders.
        layout: "classes": the folders in it are the classes. "splits": they are train, val and test, and hold
            the classes. "auto": what the names say.
        labels: CSV that names the videos and their classes; folders then mean nothing, and other videos are left out.
        follow_links: Follow symbolic links to folders and files. Not followed, they are named in the notes.

    Raises:
        InputError: The folder cannot be read or holds no candidate; the names of its folders can be read in two
            ways; a link that was not followed is where a class or a split is expected; or the list is wrong.
    """
    name = printable(raw)
    tree = _walk(raw, "a folder RAW/<class>/<video>", follow_links=follow_links)
    notes = _link_notes(tree, follow_links=follow_links)
    if labels is not None:
        listed = read_labels(labels, [path for path, _, _ in tree.files], [link.path for link in tree.links])
        depth, classes = LISTED, listed.classes
        notes += _unlisted_notes(tree, listed)
    else:
        listed = None
        tops = top_folders(path for path, _, _ in tree.files)
        _check_links(name, tree, 0, layout)
        depth = find_class_depth(name, tops, layout)
        _check_links(name, tree, depth, layout)
        classes = tuple(_class_of(path, depth) for path, _, _ in tree.files)
        notes += _loose_notes(tree) + layout_notes(tops, depth) + _empty_notes(tree, depth)
    skipped = tree.skipped
    videos = []
    for (path, num_bytes, mtime_ns), class_name in zip(tree.files, classes, strict=True):
        if class_name is None:
            skipped["outside a class folder" if listed is None else "not in the list of labels"] += 1
        else:
            videos.append(VideoFile(path, class_name, num_bytes, mtime_ns))
    if not videos:
        raise InputError(_describe_none(name, tree, depth))
    return Sources(tuple(videos), dict(skipped), depth, tuple(notes), listed)


def list_videos(folder: Path, *, follow_links: bool = False) -> tuple[tuple[Path, ...], dict[str, int], list[str]]:
    """List the candidates anywhere below a folder, by the rules of `find_videos`, class folders apart.

    Returns:
        The candidates, sorted by path as bytes; how many files were none, by reason; and what the user should know.

    Raises:
        InputError: The folder cannot be read or holds no candidate.
    """
    tree = _walk(folder, "a folder with videos", follow_links=follow_links)
    notes = _link_notes(tree, follow_links=follow_links)
    if not tree.files:
        left_out = "".join(f", {count} {reason}" for reason, count in sorted(tree.skipped.items()))
        said = "".join(f". {note}" for note in notes)
        raise InputError(f"{printable(folder)}: no videos found{left_out}, expected at least one in it or below{said}")
    root = os.fsencode(folder)
    return tuple(Path(os.fsdecode(os.path.join(root, path))) for path, _, _ in tree.files), dict(tree.skipped), notes


def _walk(folder: Path, expected: str, *, follow_links: bool) -> Tree:
    try:
        return walk(os.fsencode(folder), follow_links=follow_links)
    except OSError as error:
        where = printable(error.filename or folder)
        raise InputError(f"{where}: {error.strerror}, expected {expected}") from None


def _class_of(path: bytes, depth: int) -> bytes | None:
    folders = path.split(b"/")[:-1]
    if len(folders) <= depth or (depth and split_of_folder(folders[0]) is None):
        return None
    return folders[depth]


def _check_links(raw: str, tree: Tree, depth: int, layout: str) -> None:
    """Refuse a link without which a class or a split is missing: it would be another data set.

    Raises:
        InputError: Names the links.
    """
    if not tree.links:
        return
    filled = {b"/".join(path.split(b"/")[: depth + 1]) for path, _, _ in tree.files if path.count(b"/") > depth}
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
    are, they = ("is", "it is") if len(lost) == 1 else ("are", "they are")
    raise InputError(
        f"{raw}: {plural(len(lost), 'link')} {are} where classes or splits are expected, and {they} not followed: "
        f"{shown(lost)}. {advice}"
    )


def _link_notes(tree: Tree, *, follow_links: bool) -> list[str]:
    notes = []
    if tree.links:
        advice = "" if follow_links else ". Follow them with --follow-links"
        was = "was" if len(tree.links) == 1 else "were"
        notes.append(f"{plural(len(tree.links), 'link')} {was} not followed: {shown(tree.links)}{advice}")
    if tree.copies:
        pairs = [f"{printable(first)} = {printable(second)}" for first, second in tree.copies]
        notes.append(f"{plural(len(pairs), 'file')} can be reached in two ways, and is a clip twice: {shown(pairs)}")
    return notes


def _unlisted_notes(tree: Tree, listed: Labels) -> list[str]:
    out = [path for (path, _, _), name in zip(tree.files, listed.classes, strict=True) if name is None]
    if not out:
        return []
    return [f"{plural(len(out), 'file')} not in {printable(listed.file)}, left out: for example {printable(out[0])}"]


def _loose_notes(tree: Tree) -> list[str]:
    loose = [path for path, _, _ in tree.files if b"/" not in path]
    if not loose:
        return []
    return [
        f"{plural(len(loose), 'file')} directly in the raw folder, in no class, left out: for example "
        f"{printable(loose[0])}. Move them into the folder of their class, or give the labels by a CSV: --labels"
    ]


def _empty_notes(tree: Tree, depth: int) -> list[str]:
    """Name class and split folders without a video."""
    filled = {b"/".join(path.split(b"/")[: level + 1]) for path, _, _ in tree.files for level in range(depth + 1)}
    empty = sorted(folder for folder in tree.folders if folder.count(b"/") <= depth and folder not in filled)
    return [f"{plural(len(empty), 'folder')} without a video: {shown([printable(name) for name in empty])}"] * bool(
        empty
    )


def _describe_none(raw: str, tree: Tree, depth: int) -> str:
    expected = "/<train, val or test>" if depth == 1 else ""
    loose = _loose_notes(tree)
    if not loose:
        return f"{raw}: no videos found, expected {raw}{expected}/<class>/<video>"
    return (
        f"{raw}: no videos in class folders, but {len(tree.files):,} files elsewhere, for example "
        f"{printable(tree.files[0][0])}. Put them into {raw}/<class>/ or {raw}/<train, val or test>/<class>/, or give "
        "the labels by a CSV with the columns path,label: --labels"
    )


follow_links_option = option(
    "--follow-links", is_flag=True, show_default=False, help="Follow symbolic links to folders and videos."
)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What the classes are, and whether links are followed."""
    for decorate in (
        follow_links_option,
        option(
            "--labels",
            envvar=None,
            type=click.Path(path_type=Path, dir_okay=False),
            help="CSV with the columns path,label[,split][,group]: names the videos below RAW and their classes.",
        ),
        option(
            "--layout",
            type=click.Choice(("auto", "classes", "splits")),
            default="auto",
            help="RAW/<class>/ (classes) or RAW/{train,val,test}/<class>/ (splits); auto looks at the folders' names.",
        ),
    ):
        command = decorate(command)
    return command


def check_source_options(layout: str, labels: Path | None) -> None:
    """Refuse options that contradict each other.

    Raises:
        click.UsageError: Both folders and a list are to say what the classes are.
    """
    if labels and layout != "auto":
        raise click.UsageError(f"--layout {layout}: means nothing with --labels; choose one of them")
