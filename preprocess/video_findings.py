"""What is odd about single videos: broken, doubled, blank, in the wrong place."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from vidcache.cache.layout import Split, Status
from vidcache.preprocess.analysis import BLACK_BELOW, STILL_FRAMES, STILL_RANGE, Facts
from vidcache.preprocess.copies import find_copies
from vidcache.preprocess.finding import MAX_NAMES, Finding, Severity, share, some_names
from vidcache.preprocess.picture import HDR_TRANSFERS
from vidcache.text import plural

MANY_FAILED = 0.1
COMPARED = (Split.TRAIN, Split.VAL, Split.TEST)  # what is unused cannot make results too good


def failures(facts: Facts) -> Iterator[Finding]:
    """Find failed and damaged videos."""
    for status, advice in (
        (Status.FAILED, "They have no clip. Replace or remove them; the reason is in videos.csv."),
        (Status.DAMAGED, "Their clips are used as far as they go. Look at them, or fetch the files again."),
    ):
        rows = np.flatnonzero(facts.status == status)
        if not len(rows):
            continue
        reasons, counts = np.unique([facts.reason_of(row) for row in rows.tolist()], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        said = ", ".join(f"{counts[k]:,} {reasons[k]}" for k in order.tolist())
        failed, many = status == Status.FAILED, len(rows) > MANY_FAILED * len(facts)
        yield Finding(
            (Severity.PROBLEM if many else Severity.WARNING) if failed else Severity.NOTE,
            f"{plural(len(rows), 'video')} {'failed' if failed else 'came out damaged'}",
            f"{share(len(rows), len(facts))}: {said}. For example {_names(facts, rows)}.",
            advice,
        )


def duplicates(facts: Facts) -> Iterator[Finding]:
    """Find videos that are the same file, or give the same clip."""
    groups = find_copies(facts)
    clashing = [group for group in groups if len(set(facts.label[group].tolist())) > 1]
    if clashing:
        yield Finding(
            Severity.PROBLEM,
            f"{plural(len(clashing), 'video is', 'videos are')} under two labels",
            f"The same file or clip, in different classes: {_examples(facts, clashing)}.",
            "Keep each under the label that is right: no model can learn both, and one of them counts as an error.",
        )
    leaking = [group for group in groups if sum(facts.in_split(split)[group].any() for split in COMPARED) > 1]
    if leaking:
        yield Finding(
            Severity.PROBLEM,
            f"{plural(len(leaking), 'video is', 'videos are')} in more than one split",
            f"The same file or clip, in different splits: {_examples(facts, leaking)}.",
            "The results are too good: the model is asked what it was taught. Remove the copies and build again.",
        )
    known = [id(group) for group in (*clashing, *leaking)]
    others = [group for group in groups if id(group) not in known]
    if others:
        num_more = sum(len(group) for group in others) - len(others)
        yield Finding(
            Severity.NOTE if facts.split is not None else Severity.WARNING,
            f"{plural(num_more, 'video is an exact copy', 'videos are exact copies')} of another",
            f"{plural(len(others), 'group')} of the same file or clip, in one class"
            f"{'' if facts.split is None else ' and one split'}: {_examples(facts, others)}.",
            "A copy counts twice, and in another split than its original it makes the results too good. Remove it.",
        )


def blank_pictures(facts: Facts) -> Iterator[Finding]:
    """Find clips that are black, or do not move."""
    if facts.black is None or facts.still is None:
        return
    black, still = np.flatnonzero(facts.black), np.flatnonzero(facts.still & ~facts.black)
    if len(black):
        yield Finding(
            Severity.WARNING,
            f"{plural(len(black), 'clip is', 'clips are')} black",
            f"Mean brightness below {BLACK_BELOW:g} of 255: {_names(facts, black)}.",
            "Look at the videos: a black clip under a label teaches nothing about it.",
        )
    if len(still):
        single = int((facts.num_frames[still] <= 1).sum())
        only = f" Of these, {plural(single, 'has', 'have')} a single frame." if single else ""
        yield Finding(
            Severity.WARNING,
            f"{plural(len(still), 'clip does', 'clips do')} not move",
            f"In {STILL_FRAMES} evenly spaced frames no value changes by more than {STILL_RANGE} of 255: "
            f"{_names(facts, still)}.{only}",
            "Look at the videos: a frozen recording, or a picture, shows nothing that happens.",
        )


def high_dynamic_range(facts: Facts) -> Iterator[Finding]:
    """Find HDR videos beside others."""
    rows = np.flatnonzero(np.isin(facts.transfer, [name.encode() for name in HDR_TRANSFERS]))
    if len(rows):
        yield Finding(
            Severity.NOTE,
            f"{plural(len(rows), 'video is', 'videos are')} in HDR",
            f"{share(len(rows), len(facts))}: PQ or HLG, for example {_names(facts, rows)}.",
            "Their clips look washed out beside others, unless they were built with --tonemap.",
        )


def left_out(facts: Facts) -> Iterator[Finding]:
    """Say what of a folder belongs to no class, or may be meant in another way."""
    if facts.notes:
        yield Finding(
            Severity.WARNING if any("link" in note for note in facts.notes) else Severity.NOTE,
            f"{plural(len(facts.notes), 'thing')} in the folder may be meant in another way",
            "; ".join(facts.notes) + ".",
            "Check that this is the data that you mean.",
        )
        return
    count = facts.skipped.get("outside a class folder", 0)
    if count:
        yield Finding(
            Severity.NOTE,
            f"{plural(count, 'file lies', 'files lie')} outside the class folders",
            f"Beside the {plural(len(facts.classes), 'class folder')} of {facts.name}.",
            "They are left out. A video belongs into the folder of its class.",
        )


def _names(facts: Facts, rows: npt.NDArray[np.int64]) -> str:
    return some_names((facts.name_of(row) for row in rows.tolist()), len(rows))


def _examples(facts: Facts, groups: list[npt.NDArray[np.int64]]) -> str:
    def where(row: int) -> str:
        name = facts.name_of(row)
        return name if facts.split is None else f"{name} ({Split(facts.split[row]).name.lower()})"

    def equation(group: npt.NDArray[np.int64]) -> str:
        more = f" = {len(group) - MAX_NAMES:,} more" if len(group) > MAX_NAMES else ""
        return " = ".join(where(row) for row in group[:MAX_NAMES].tolist()) + more

    return some_names(map(equation, groups), len(groups))
