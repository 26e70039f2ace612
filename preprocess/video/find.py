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
    left_out_note,
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
    tree = _walk(raw, follow_links=follow_links)
    notes, paths = tree.link_notes(), [path for path, _, _ in tree.files]
    if labels is not None:
        listed = read_labels(labels, paths, has_links=bool(tree.links))
        depth, classes, reason = LISTED, listed.classes, "not in the list of labels"
        unlisted = [path for path, class_name in zip(paths, classes, strict=True) if class_name is None]
        if unlisted:
            files = f"{plural(len(unlisted), 'file')} not in {printable(listed.file)}"
            notes.append(f"{files}, left out: for example {printable(unlisted[0])}")
    else:
        listed, reason = None, "outside a class folder"
        depth = _depth_of_classes(printable(raw), tree, layout)
        classes = tuple(_class_of(path, depth) for path in paths)
        notes += _folder_notes(tree, depth)
    videos = tuple(
        VideoFile(path, class_name, num_bytes, mtime_ns)
        for (path, num_bytes, mtime_ns), class_name in zip(tree.files, classes, strict=True)
        if class_name is not None
    )
    if not videos:
        place = f"{printable(raw)}{'/<train, val or test>' if depth == 1 else ''}/<class>/<video>"
        found = f", but {plural(len(paths), 'file')} elsewhere, for example {printable(paths[0])}" if paths else ""
        raise InputError(f"{printable(raw)}: no videos found{found}. Put them into {place}, {_LOOSE_ADVICE}")
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


# --- what the folders mean --------------------------------------------------------------------


def _depth_of_classes(raw: str, tree: "Tree", layout: str) -> int:
    _check_links(raw, tree, 0, layout)
    depth = find_class_depth(raw, count_folders(path for path, _, _ in tree.files), layout)
    _check_links(raw, tree, depth, layout)
    return depth


def _class_of(path: bytes, depth: int) -> bytes | None:
    folders = path.split(b"/")[:-1]
    if len(folders) <= depth or (depth and split_of_folder(folders[0]) is None):
        return None
    return folders[depth]


def _folder_notes(tree: "Tree", depth: int) -> list[str]:
    """Say what the layout leaves out, a sentence each."""
    notes, paths = [], [path for path, _, _ in tree.files]
    loose = [path for path in paths if b"/" not in path]
    if loose:
        notes.append(
            f"{plural(len(loose), 'file')} directly in the raw folder, in no class, left out: for example "
            f"{printable(loose[0])}. Move them into the folder of their class, {_LOOSE_ADVICE}"
        )
    if depth:
        notes += left_out_note(count_folders(paths))
    empty = sorted({folder for folder in tree.folders if folder.count(b"/") <= depth} - _filled(paths, depth))
    if empty:
        notes.append(f"{plural(len(empty), 'folder')} without a video: {join_few([*map(printable, empty)])}")
    return notes


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
    advice = "Follow links with --follow-links, or take them out of the raw folder if they are no part of the data"
    if any(link.reason for link in lost):
        advice = "Put a folder in the place of each, or take it out of the raw folder"
    links = plural(len(lost), "link")
    raise InputError(f"{raw}: {links} in the place of classes or splits, not followed: {join_few(lost)}. {advice}")


# --- what there is ----------------------------------------------------------------------------


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


@dataclasses.dataclass
class Tree:
    """What is below a folder."""

    follows_links: bool
    files: list[tuple[bytes, int, int]] = dataclasses.field(default_factory=list)  # path, size (0: not regular), mtime
    folders: list[bytes] = dataclasses.field(default_factory=list)
    links: list[Link] = dataclasses.field(default_factory=list)  # that were not followed
    skipped: Counter[str] = dataclasses.field(default_factory=Counter)  # files that are no candidates, by reason

    def link_notes(self) -> list[str]:
        """Name the links that were not followed."""
        if not self.links:
            return []
        advice = "" if self.follows_links else ". Follow them with --follow-links"
        were = "was" if len(self.links) == 1 else "were"
        return [f"{plural(len(self.links), 'link')} {were} not followed: {join_few(self.links)}{advice}"]

    def add(self, path: bytes, entry: os.DirEntry[bytes], *, is_folder: bool) -> None:
        """Note a file, or a link that is not followed."""
        reason = ""
        try:
            facts = entry.stat(follow_symlinks=self.follows_links)
        except OSError:
            facts, reason = entry.stat(follow_symlinks=False), "leads nowhere"
        if entry.is_symlink() and (reason or not self.follows_links):
            is_file = not is_folder and os.path.exists(entry.path)
            self.links.append(Link(path, os.readlink(entry.path), reason, is_file))
        if not is_folder:
            num_bytes = facts.st_size if stat.S_ISREG(facts.st_mode) else 0
            self.files.append((path, num_bytes, modification_time_ns(facts)))


def _walk(root: Path, *, follow_links: bool) -> Tree:
    """List what is below a folder; no link leads twice into one folder, nor above the root: every walk ends."""
    tree, top = Tree(follow_links), os.fsencode(root)
    folders, behind_links = [b""], list[bytes]()
    try:
        entered = {_identity(parent): b"" for parent in Path(os.path.realpath(root)).parents}
        while folders or behind_links:
            if not folders:  # last: what lies in the root has its path there
                folders, behind_links = sorted(behind_links, reverse=True), []
            folder = folders.pop()
            full = os.path.join(top, folder) if folder else top
            first = entered.setdefault(_identity(full), folder) if follow_links else folder
            if first != folder:
                reason = f"the same folder as {printable(first)}" if first else "leads to a folder above it"
                tree.links.append(Link(folder, os.readlink(full) if os.path.islink(full) else b"", reason))
                continue
            tree.folders += [folder] if folder else []
            with os.scandir(full) as entries:
                for entry in entries:
                    path, is_link = os.path.join(folder, entry.name), entry.is_symlink()
                    is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()
                    if entry.name.startswith(b"."):
                        tree.skipped["hidden"] += 1
                    elif not is_folder and os.path.splitext(os.fsdecode(entry.name))[1].lower() in SIDECARS:
                        tree.skipped["not a video by its name"] += 1
                    elif is_folder and (follow_links or not is_link):
                        (behind_links if is_link else folders).append(path)
                    else:
                        tree.add(path, entry, is_folder=is_folder)
    except OSError as error:
        raise InputError(f"{printable(error.filename or root)}: {error.strerror}. Name a folder of videos") from None
    tree.files.sort()
    tree.links.sort(key=lambda link: link.path)
    return tree


def _identity(folder: Path | bytes) -> tuple[int, int]:
    facts = os.stat(folder)
    return facts.st_dev, facts.st_ino
