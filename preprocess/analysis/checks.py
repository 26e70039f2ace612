"""What is odd about the classes: their sizes, their places in the split, what gives them away."""

import dataclasses
import enum
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from vidcache.cache.format import Split, Status
from vidcache.cache.leakage import find_duplicates, leaks_among
from vidcache.cache.mirrored import find_mirror_pairs, in_words
from vidcache.cache.reader import Reader
from vidcache.preprocess.analysis.facts import BLACK_BELOW, STILL_FRAMES, STILL_RANGE, Facts
from vidcache.preprocess.analysis.shortcuts import ClassShortcut, MetadataLeakReport, Shortcut, dependence
from vidcache.preprocess.video.classes import describe_twins, find_twins
from vidcache.preprocess.video.probe import HDR_TRANSFERS
from vidcache.text import plural, printable

MAX_NAMES = 3


class Severity(enum.StrEnum):
    """How bad a finding is, worst first."""

    PROBLEM = "problem"  # results will be wrong, or something cannot be learnt
    WARNING = "warning"  # results may be worse, or mean less, than they seem
    NOTE = "note"  # good to know


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is odd.

    Attributes:
        severity: How bad.
        title: What, in a few words.
        detail: The numbers that show it, and a few names; printable.
        advice: What to do, or to think about.
    """

    severity: Severity
    title: str
    detail: str
    advice: str


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort by severity; equal ones stay in their order."""
    order = list(Severity)
    return tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))


def some_names(names: Iterable[str], total: int) -> str:
    """Join names, at most three of them.

    Args:
        names: The first three, or more.
        total: How many there are.

    >>> some_names(["a", "b", "c", "d", "e"], 5)
    'a, b, c and 2 more'
    """
    shown = list(itertools.islice(names, MAX_NAMES))
    more = f" and {total - len(shown):,} more" if total > len(shown) else ""
    return ", ".join(shown) + more


def share(count: int, total: int) -> str:
    """Return a count and what part it is.

    >>> share(3, 60), share(1, 100000)
    ('3 of 60 (5%)', '1 of 100,000 (under 1%)')
    """
    percent = f"{count / total:.0%}" if 200 * count >= total or not count else "under 1%"
    return f"{count:,} of {total:,} ({percent})"


def amount(value: float) -> str:
    """Return a number with about three digits, never as a power of ten.

    >>> amount(0.28125), amount(8.8345), amount(768000.0)
    ('0.281', '8.83', '768,000')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def find_copies(facts: Facts) -> list[npt.NDArray[np.int64]]:
    """Group the videos that give a clip by file hash and clip hash.

    Black clips are equal without being copies: only their files are compared.

    Returns:
        Rows of each group, two or more, ascending; groups by their first row.
    """
    group = np.arange(len(facts))
    keys = [(facts.source_hash, facts.good)]
    if facts.clip_hash is not None and facts.black is not None:
        keys.append((facts.clip_hash, facts.good & ~facts.black))
    merged = True
    while merged:  # a video can join two groups: one by its file, one by its clip
        merged = False
        for values, usable in keys:
            rows = np.flatnonzero(usable & (values != b""))
            _, index = np.unique(values[rows], return_inverse=True)
            first = np.full(index.max(initial=-1) + 1, len(facts))
            np.minimum.at(first, index, group[rows])
            merged |= bool((group[rows] != first[index]).any())
            group[rows] = first[index]
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return [rows for rows in np.split(order, starts[1:]) if len(rows) > 1]


MIN_TEST_CLIPS = 5
DEFAULT_TEST_FRACTION = 0.15
IMBALANCE_NOTE, IMBALANCE_WARNING = 2.0, 5.0
SKILL_WARNING = 0.25
ADVANTAGE_WARNING = 0.8
Z = 1.959963984540054  # of a 95 % interval


def missing_classes(facts: Facts) -> Iterator[Finding]:
    """Find classes without a clip, or without one in a split, and data sets with a single class."""
    videos, clips = np.bincount(facts.label, minlength=len(facts.classes)), facts.counts(facts.good)
    empty = [f"{_name(facts, k)} ({plural(int(videos[k]), 'video')})" for k in np.flatnonzero(clips == 0).tolist()]
    if empty:
        yield Finding(
            Severity.PROBLEM,
            f"{plural(len(empty), 'class has', 'classes have')} no clip at all",
            f"All videos failed of {some_names(empty, len(empty))}.",
            "Replace these videos, or remove the folders: a class without clips still takes an output of the model.",
        )
    if len(facts.classes) == 1:
        yield Finding(
            Severity.PROBLEM,
            "There is only one class",
            f"All videos are in {_name(facts, 0)}.",
            "A classifier needs two or more: put the videos of each class into a folder of its own.",
        )
    if facts.split is None or not clips.any():
        return
    consequences = {
        Split.TRAIN: (Severity.PROBLEM, "They cannot be learnt."),
        Split.VAL: (Severity.WARNING, "The best epoch is chosen without them."),
        Split.TEST: (Severity.WARNING, "Nothing is measured for them."),
    }
    for split, (severity, consequence) in consequences.items():
        absent = np.flatnonzero((clips > 0) & (facts.counts(facts.in_split(split)) == 0)).tolist()
        if absent:
            name = split.name.lower()
            yield Finding(
                severity,
                f"{plural(len(absent), 'class has', 'classes have')} no {name} clip",
                some_names((f"{_name(facts, k)} ({plural(int(clips[k]), 'clip')} in all)" for k in absent), len(absent))
                + ".",
                f"{consequence} Collect more of them, or build with another --split or --seed.",
            )


def twins(facts: Facts) -> Iterator[Finding]:
    """Find names that look alike."""
    found = find_twins(map(os.fsencode, facts.classes))
    if found:
        yield Finding(
            Severity.WARNING,
            f"{plural(sum(map(len, found)), 'class has', 'classes have')} a name that looks like another one",
            f"They differ only by case, blanks, Unicode form or invisible characters: {describe_twins(found)}.",
            "If they are one class, give it one name: the model is told that they are different.",
        )


def small_classes(facts: Facts) -> Iterator[Finding]:
    """Find classes whose accuracy could not be measured."""
    clips = facts.counts(facts.good)
    if facts.split is None:
        test, words = clips * DEFAULT_TEST_FRACTION, "expected at 15% of their videos"
    else:
        test, words = facts.counts(facts.in_split(Split.TEST)).astype(float), "in the test split"
    # A class without any is a finding of its own.
    small = np.flatnonzero((test < MIN_TEST_CLIPS) & (clips > 0) & ((test > 0) | (facts.split is None)))
    if not len(small):
        return
    small = small[np.argsort(test[small], kind="stable")]
    least = max(round(float(test[small[0]])), 1)
    yield Finding(
        Severity.WARNING,
        f"{plural(len(small), 'class has', 'classes have')} fewer than {MIN_TEST_CLIPS} test clips",
        f"{some_names((f'{_name(facts, k)} ({test[k]:.3g})' for k in small.tolist()), len(small))}, {words}. "
        # Wilson 1927: the lower end for n right of n is n / (n + z^2).
        f"With {plural(least, 'clip')}, {least} right of {least} can mean anything "
        f"from {least / (least + Z * Z):.0%} to 100% (95% interval).",
        "Read the accuracy of such a class as a hint, or collect more videos of it.",
    )


def imbalance(facts: Facts) -> Iterator[Finding]:
    """Find classes of very different sizes; in a cache, among the clips that train."""
    which = facts.good if facts.split is None else facts.in_split(Split.TRAIN)
    counts = facts.counts(which)
    present = np.flatnonzero(counts)
    if len(present) < 2:
        return
    largest, smallest = int(present[counts[present].argmax()]), int(present[counts[present].argmin()])
    ratio = counts[largest] / counts[smallest]
    if ratio < IMBALANCE_NOTE:
        return
    noun = "video" if facts.split is None else "training clip"
    yield Finding(
        Severity.WARNING if ratio >= IMBALANCE_WARNING else Severity.NOTE,
        f"The largest class is {ratio:.1f} times the smallest",
        f"{_name(facts, largest)} has {plural(int(counts[largest]), noun)}, "
        f"{_name(facts, smallest)} {counts[smallest]:,}; the median is {np.median(counts[present]):g}.",
        f"Think about vidtrain --balance. The default, both, makes up for it twice: the smallest class then weighs "
        f"{ratio:.1f} times as much as the largest. sampler or loss alone make all classes equal; with none the "
        f"largest weighs {ratio:.1f} times as much. vidtrain prints what it does to each class.",
    )


def shortcuts(facts: Facts, study: MetadataLeakReport) -> Iterator[Finding]:
    """Find side effects that tell the class."""
    telling = [shortcut for shortcut in study.alone if shortcut.is_significant]
    together = [study.together] if study.together and study.together.is_significant else []
    given_away = _given_away(facts, study)
    if not telling and not together and not given_away:
        return
    sentences = []
    if telling or together:
        said = [f"{shortcut.feature} alone {_percent(shortcut.accuracy)}" for shortcut in telling]
        said += [f"{shortcut.feature} {_percent(shortcut.accuracy)}" for shortcut in together]
        chance = f"guessing {_percent(1 / study.num_classes)}"
        sentences.append(f"Mean share recognised over {study.num_classes} classes: {', '.join(said)}; {chance}.")
    sentences += [sentence for _, sentence in given_away[:3]]
    if len(given_away) > 3:
        sentences.append(f"And {plural(len(given_away) - 3, 'more class', 'more classes')}.")
    sentences.append(
        f"({study.num_videos:,} videos, each shown to a forest that had not learnt from it; with the labels in random "
        "order, so much is found in less than 1 of 100 data sets.)"
    )
    strong = any(shortcut.skill >= SKILL_WARNING for shortcut in (*telling, *together))
    strong = strong or any(advantage >= ADVANTAGE_WARNING for advantage, _ in given_away)
    yield Finding(
        Severity.WARNING if strong else Severity.NOTE,
        f"The class can be guessed from {_causes(study, telling)}, without looking at the pictures",
        " ".join(sentences),
        "Ask where each class comes from. What differs by camera, source or cutting is learnt instead of what "
        "happens, and the test split rewards it. Give all classes the same mixture, and test on videos of "
        "another origin. Length, and file size with it, can be part of what happens: then it is no harm.",
    )


def _given_away(facts: Facts, study: MetadataLeakReport) -> list[tuple[float, str]]:
    """Classes that one side effect gives away, each by its most telling one: (advantage, sentence)."""
    best: dict[int, tuple[ClassShortcut, str]] = {}
    for shortcut in study.alone:
        for found in shortcut.classes:
            if found.label not in best or found.advantage > best[found.label][0].advantage:
                best[found.label] = found, shortcut.feature
    return sorted(
        (
            (
                found.advantage,
                f"{_name(facts, found.label)} by {feature} alone: {found.num_found:,} of {found.num_videos:,} found, "
                f"{found.num_mistaken:,} of {found.num_others:,} others mistaken for it.",
            )
            for found, feature in best.values()
        ),
        key=lambda item: -item[0],
    )


def _causes(study: MetadataLeakReport, telling: list[Shortcut]) -> str:
    features = [s.feature for s in telling] or [s.feature for s in study.alone if s.classes]
    return some_names(features, len(features)) if features else "side effects together"


def _name(facts: Facts, label: int) -> str:
    return printable(facts.classes[label])


def _percent(part: float) -> str:
    return f"{100 * part:.3g}%"


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


MANY_PADDED = 0.05
MIN_CLASS_CLIPS = 8  # before anything is said of their share
STRONG = 0.5  # Cramer's V
COARSE_FPS = 2.0
PRETRAINED_FPS = 15  # what the Kinetics-400 weights saw
MIN_FOR_OUTLIERS = 8
COMMON = 0.05  # share of the videos from which on a codec, rate or shape counts as one of a mixture


def coarse_sampling(facts: Facts) -> Iterator[Finding]:
    """Find videos so long that their clips are a slide show."""
    rates, num_good = facts.effective_fps, int(facts.good.sum())
    coarse = np.flatnonzero((rates < COARSE_FPS) & ~facts.padded)  # NaN is not; a padded clip has all frames there are
    if not len(coarse):
        return
    worst = int(coarse[rates[coarse].argmin()])
    yield Finding(
        Severity.WARNING if len(coarse) > 0.1 * num_good else Severity.NOTE,
        f"{plural(len(coarse), 'clip has', 'clips have')} fewer than {COARSE_FPS:g} frames per second",
        f"{share(len(coarse), num_good)}; the fewest: {rates[worst]:.2g} per second, "
        f"{plural(int(facts.num_real[worst]), 'frame')} of {amount(facts.duration_seconds[worst])} s in "
        f"{facts.name_of(worst)}. The median of all is {np.nanmedian(rates):.3g}; "
        f"the pretrained weights saw {PRETRAINED_FPS}.",
        "What happens between two frames is not seen. Cut long videos into shorter ones, or raise --num-frames.",
    )


def outliers(facts: Facts) -> Iterator[Finding]:
    """Find videos that are far from the others in length, rate or size.

    On a log scale, farther from the median than 3.5 robust standard deviations (Iglewicz and Hoaglin,
    "How to Detect and Handle Outliers", 1993), and than a factor of 2.
    """
    pixels = facts.width.astype(float) * facts.height
    for what, values, unit, advice in (
        (
            "length",
            facts.duration_seconds,
            "s",
            "A clip has the same number of frames whatever the length: long videos are sampled coarsely, short ones "
            "are padded.",
        ),
        ("frame rate", facts.fps, "per second", "Headers can be wrong: look whether they play at their speed."),
        ("frame size", pixels, "pixels", "All are scaled to one size: small ones show less."),
    ):
        known = np.flatnonzero(facts.good & (values > 0))
        if len(known) < MIN_FOR_OUTLIERS:
            continue
        median = float(np.median(values[known]))
        distance = np.abs(np.log(values[known] / median))
        low, high = np.percentile(np.log(values[known]), [25, 75])
        # Where most are equal, the median distance is 0: then the quartiles, or 10 %, are the scale.
        scale = max(1.4826 * float(np.median(distance)), (high - low) / 1.349, math.log(1.1))
        far = known[(distance > max(3.5 * scale, math.log(2)))]
        if len(far):
            far = far[np.argsort(-np.abs(np.log(values[far] / median)), kind="stable")]
            named = (f"{facts.name_of(row)} ({amount(values[row])} {unit})" for row in far.tolist())
            yield Finding(
                Severity.NOTE,
                f"{plural(len(far), 'video is', 'videos are')} far from the others in {what}",
                f"The median is {amount(median)} {unit}; the farthest: {some_names(named, len(far))}.",
                advice,
            )


def padding(facts: Facts) -> Iterator[Finding]:
    """Say how many clips are padded, and whether that depends on the class."""
    num_good, padded = int(facts.good.sum()), facts.padded
    clips, of_class = facts.counts(facts.good), facts.counts(padded)
    large = clips >= MIN_CLASS_CLIPS
    unequal = dependence(of_class[large], clips[large]) >= STRONG
    if not padded.any() or (padded.sum() < MANY_PADDED * num_good and not unequal):
        return
    per_class = ""
    if unequal:
        shares = np.where(large, of_class / np.maximum(clips, 1), np.nan)
        most, least = int(np.nanargmax(shares)), int(np.nanargmin(shares))
        per_class = (
            f" From {shares[least]:.0%} of {printable(facts.classes[least])} to "
            f"{shares[most]:.0%} of {printable(facts.classes[most])}."
        )
    added = 1 - facts.num_real[padded].mean() / facts.num_frames_per_clip
    title = f"{plural(int(padded.sum()), 'clip is', 'clips are')} padded"
    yield Finding(
        Severity.NOTE,
        f"{title}, and not alike in all classes" if unequal else title,
        f"{share(int(padded.sum()), num_good)} have fewer than {facts.num_frames_per_clip} frames and repeat their "
        f"last one; {added:.0%} of such a clip is repetition.{per_class}",
        "Padding is normal. Fewer frames per clip (--num-frames) pad less"
        + ("; a model can tell a class by it." if unequal else "."),
    )


def mixtures(facts: Facts) -> Iterator[Finding]:
    """Say which codecs, rates and shapes are mixed."""
    rates = np.char.mod("%.3g fps", facts.fps)
    shapes = np.select([facts.width > facts.height, facts.width < facts.height], ["landscape", "portrait"], "square")
    parts = []
    for what, values in (
        ("codecs", facts.codec),
        ("pixel formats", facts.pixel_format),
        ("frame rates", np.where(facts.fps > 0, rates, "")),
        ("shapes", np.where(facts.width > 0, shapes, "")),
    ):
        kinds, counts = np.unique(values[facts.good], return_counts=True)
        order = [
            k for k in np.argsort(-counts, kind="stable").tolist() if counts[k] >= COMMON * counts.sum() and kinds[k]
        ]
        if len(order) > 1:
            named = [f"{printable(kinds[k])} {counts[k] / counts.sum():.0%}" for k in order]
            parts.append(f"{what}: {some_names(named, len(named))}")
    if parts:
        yield Finding(
            Severity.NOTE,
            "The videos are not all of one kind",
            f"{'; '.join(parts)}.",
            "No harm as long as every class has the same mixture.",
        )


def look_alikes(reader: Reader) -> Iterator[Finding]:
    """Find clips that show the same without being the same bit for bit: those are `video_findings.duplicates`.

    Args:
        reader: The cache, or several.
    """
    found = find_duplicates(reader.columns, splits=reader.columns["split"])
    near = found.rows
    if not len(near):
        return
    leaks = leaks_among(found, reader.columns["split"])
    across = len(leaks.pairs)
    if across:
        yield Finding(
            Severity.PROBLEM,
            f"{plural(len(np.unique(leaks.pairs)), 'clip')} of different splits look alike",
            f"{leaks.in_words.capitalize()}. For example {_pair_examples(reader, leaks.pairs)}.",
            "The results are too good: the model is asked what it was taught. See them with vidcache leaks CACHE, keep "
            "them together with vidcache split CACHE --near-duplicates group.",
        )
    labels = reader.labels[near]
    clashing = near[labels[:, 0] != labels[:, 1]]
    if len(clashing):
        yield Finding(
            Severity.WARNING,
            f"{plural(len(clashing), 'pair')} of clips look alike, but are under two labels",
            f"Of {plural(len(near), 'pair')} that look alike. For example {_pair_examples(reader, clashing)}.",
            "Watch some: cuts of one scene can differ in what happens for a moment, copies cannot. Correct labels that "
            "are wrong.",
        )
    if not across:
        clips = len(np.unique(near))
        yield Finding(
            Severity.NOTE,
            f"{plural(clips, 'clip')} look like others",
            f"{share(clips, len(reader.rows()))}, in {plural(len(near), 'pair')}; none straddle the splits. "
            f"For example {_pair_examples(reader, near)}.",
            "They count as one when you ask how much data there is.",
        )


def mirror_images(reader: Reader) -> Iterator[Finding]:
    """Find classes that are told apart by left and right.

    Args:
        reader: The cache, or several.
    """
    pairs = find_mirror_pairs(reader)
    if pairs:
        yield Finding(
            Severity.WARNING if any(pair.share is not None for pair in pairs) else Severity.NOTE,
            "Classes are told apart by left and right",
            f"{in_words(pairs, reader.classes)}.",
            "vidtrain mirrors half of the clips and keeps their labels: train with --flip 0, and do not evaluate "
            "with videval --tta flip.",
        )


def _pair_examples(reader: Reader, pairs: "np.ndarray[tuple[int, int], np.dtype[np.int64]]") -> str:
    names = [" and ".join(printable(reader.path_of(row)) for row in pair) for pair in pairs[:MAX_NAMES].tolist()]
    return some_names(names, len(pairs))


def find_all(facts: Facts, study: MetadataLeakReport, extra: Sequence[Finding] = ()) -> tuple[Finding, ...]:
    """Look for everything.

    Args:
        facts: The videos.
        study: Of the same videos.
        extra: What others have found; sorted in.
    """
    found = [
        *extra,
        *failures(facts),
        *missing_classes(facts),
        *twins(facts),
        *duplicates(facts),
        *shortcuts(facts, study),
        *small_classes(facts),
        *imbalance(facts),
        *blank_pictures(facts),
        *coarse_sampling(facts),
        *outliers(facts),
        *padding(facts),
        *mixtures(facts),
        *high_dynamic_range(facts),
        *left_out(facts),
    ]
    return worst_first(found)
