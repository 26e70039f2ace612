"""The checks of `vidcache analyze`: each yields what is wrong, or worth knowing, about the videos."""

import dataclasses
import enum
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from vidcache.cache.format import Split, Status
from vidcache.cache.leakage import find_duplicates, leaks_among, mirrored_classes
from vidcache.cache.reader import Reader
from vidcache.preprocess.analysis.facts import Facts
from vidcache.preprocess.video.classes import describe_twins, find_twins
from vidcache.preprocess.video.probe import HDR_TRANSFERS
from vidcache.text import plural, printable

MAX_NAMES = 3
MANY_FAILED, MANY_COARSE, MANY_PADDED = 0.1, 0.1, 0.05
MIN_TEST_CLIPS, DEFAULT_TEST_FRACTION = 5, 0.15
IMBALANCE_NOTE, IMBALANCE_WARNING = 2.0, 5.0
KAPPA_WARNING, YOUDEN_WARNING = 0.25, 0.8
COARSE_FPS, PRETRAINED_FPS = 2, 15  # the Kinetics-400 weights were trained on 15 frames per second
USED = (Split.TRAIN, Split.VAL, Split.TEST)
INFLATED = "Test results are inflated: the model has seen these clips."

Rows = npt.NDArray[np.int64]


class Severity(enum.StrEnum):
    """How bad a finding is, worst first."""

    PROBLEM = "problem"  # results will be wrong, or something cannot be learnt
    WARNING = "warning"  # results may be worse, or mean less, than they seem
    NOTE = "note"  # good to know


PROBLEM, WARNING, NOTE = Severity


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is wrong, in a few words; the numbers and names that show it, printable; what to do."""

    severity: Severity
    title: str
    detail: str
    advice: str


Findings = Iterator[Finding]


def share(count: int, total: int) -> str:
    """Return a count and its percentage: 3 of 60 (5%)."""
    percent = f"{count / total:.0%}" if 200 * count >= total or not count else "under 1%"
    return f"{count:,} of {total:,} ({percent})"


def amount(value: float) -> str:
    """Return a number with about three digits, never as a power of ten: 0.281, 768,000."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def join(names: Sequence[str], separator: str = ", ") -> str:
    """Join the first three names, and say how many more there are."""
    more = f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else ""
    return separator.join(names[:MAX_NAMES]) + more


def _some(severity: Severity, title: str, names: Sequence[str], advice: str, total: int = 0) -> Findings:
    """A finding about some of `total` videos or classes, if there are any."""
    if names:
        detail = f"{share(len(names), total)}: {join(names)}." if total else f"{join(names)}."
        yield Finding(severity, f"{title}: {len(names):,}", detail, advice)


def _classes(facts: Facts, labels: Rows, counts: npt.NDArray[Any]) -> list[str]:
    return [f"{printable(facts.classes[label])} ({counts[label]:,.3g})" for label in labels]


def failures(facts: Facts) -> Findings:
    """Failed and damaged videos."""
    failed, damaged = (np.flatnonzero(facts.status == status) for status in (Status.FAILED, Status.DAMAGED))
    worst = PROBLEM if len(failed) > MANY_FAILED * len(facts) else WARNING
    for rows, severity, title, advice in (
        (failed, worst, "Failed videos", "They have no clip. Replace or remove them; see videos.csv."),
        (damaged, NOTE, "Damaged videos", "Their clips are used. Watch them, or fetch the files again."),
    ):
        yield from _some(severity, title, facts.names(rows, facts.reasons(rows)), advice, len(facts))


def classes(facts: Facts) -> Findings:
    """Classes without clips, a single class, and names that look alike."""
    videos, clips = np.bincount(facts.label, minlength=len(facts.classes)), facts.counts(facts.good)
    names, advice = _classes(facts, np.flatnonzero(clips == 0), videos), "Replace their videos, or remove the folders."
    yield from _some(PROBLEM, "Classes of which all videos failed", names, advice, len(clips))
    for split in USED if facts.split is not None else ():
        names = _classes(facts, np.flatnonzero((clips > 0) & (facts.counts(facts.in_split(split)) == 0)), clips)
        severity, title = PROBLEM if split == Split.TRAIN else WARNING, f"Classes without a {split.name.lower()} clip"
        advice = "Collect more videos of them, or build with another --split or --seed."
        yield from _some(severity, title, names, advice, len(clips))
    if len(clips) == 1:
        advice = "A classifier needs at least two classes, each in a folder of its own."
        yield Finding(PROBLEM, "There is only one class", f"All videos are in {printable(facts.classes[0])}.", advice)
    twins = find_twins(map(os.fsencode, facts.classes))
    if twins:
        title = f"{plural(sum(map(len, twins)), 'class has', 'classes have')} a name that looks like another one"
        detail = f"They differ only by case, blanks, Unicode form or invisible characters: {describe_twins(twins)}."
        yield Finding(WARNING, title, detail, "If they are one class, give it one name.")


def class_sizes(facts: Facts) -> Findings:
    """Classes too small to be evaluated, and classes of very different sizes."""
    clips = facts.counts(facts.good)
    test, train, noun = clips * DEFAULT_TEST_FRACTION, clips, "Videos"  # what the default split will give
    if facts.split is not None:
        test, train = facts.counts(facts.in_split(Split.TEST)).astype(float), facts.counts(facts.in_split(Split.TRAIN))
        noun = "Training clips"
    order = np.argsort(test, kind="stable")
    small = order[(test[order] > 0) & (test[order] < MIN_TEST_CLIPS)]  # none at all is another finding
    if len(small):
        least = max(round(float(test[small[0]])), 1)
        low = binomtest(least, least).proportion_ci(method="wilson").low
        advice = f"Collect more videos: {least} of {least} correct can mean an accuracy of {low:.0%} (95% interval)."
        title = f"Classes with fewer than {MIN_TEST_CLIPS} test clips"
        yield from _some(WARNING, title, _classes(facts, small, test), advice, len(test))
    order = np.argsort(-train, kind="stable")[: np.count_nonzero(train)]
    ratio = train[order[0]] / train[order[-1]] if len(order) else 0.0
    if ratio >= IMBALANCE_NOTE:
        largest, smallest = _classes(facts, order[[0, -1]], train)
        detail = f"{noun}: {largest}, {smallest}; the median is {np.median(train[order]):g}."
        advice = "vidtrain --balance sampler or loss weigh all classes alike; both (the default) favours the smallest."
        severity = WARNING if ratio >= IMBALANCE_WARNING else NOTE
        yield Finding(severity, f"The largest class is {ratio:.1f} times the smallest", detail, advice)


def find_copies(facts: Facts) -> list[Rows]:
    """Group the videos with the same clip; with the same file where there is no hash of the clip, or it is black."""
    key = facts.source_hash
    if facts.clip_hash is not None and facts.black is not None:
        key = np.where(facts.black, facts.source_hash, facts.clip_hash)
    rows = np.flatnonzero(facts.good & (key != b""))
    rows = rows[np.argsort(key[rows], kind="stable")]
    groups = np.split(rows, np.flatnonzero(key[rows][1:] != key[rows][:-1]) + 1)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))


def copies(facts: Facts) -> Findings:
    """Videos that are the same file, or give the same clip."""
    groups = find_copies(facts)
    clashing = [len(np.unique(facts.label[group])) > 1 for group in groups]
    leaking = [sum(facts.in_split(split)[group].any() for split in USED) > 1 for group in groups]
    others = [not clash and not leak for clash, leak in zip(clashing, leaking, strict=True)]
    usual = WARNING if facts.split is None else NOTE
    for chosen, severity, title, advice in (
        (clashing, PROBLEM, "The same video under two labels", "Keep each under the correct label only."),
        (leaking, PROBLEM, "The same video in more than one split", f"{INFLATED} Remove copies and build again."),
        (others, usual, "Groups of exact copies", "Each copy counts like another video. Remove the copies."),
    ):
        equal = itertools.compress(groups, chosen)
        names = [join(facts.names(group, facts.split_names(group)), " = ") for group in equal]
        yield from _some(severity, title, names, advice)


def frames(facts: Facts) -> Findings:
    """Clips that skip or repeat frames."""
    rates, num_good, padded = facts.effective_fps, int(facts.good.sum()), np.flatnonzero(facts.padded)
    coarse = np.flatnonzero((rates < COARSE_FPS) & ~facts.padded)  # a padded clip has all frames there are
    coarse = coarse[np.argsort(rates[coarse], kind="stable")]
    names = facts.names(coarse, [f"{rates[row]:.2g} in {amount(facts.duration_seconds[row])} s" for row in coarse])
    title = f"Clips with fewer than {COARSE_FPS} frames per second"
    severity = WARNING if len(coarse) > MANY_COARSE * num_good else NOTE
    advice = "The model does not see what happens between two frames. Cut long videos, or raise --num-frames."
    yield from _some(severity, title, names, advice, num_good)
    if len(padded) >= MANY_PADDED * num_good:
        names = facts.names(padded, [plural(int(count), "frame") for count in facts.num_real[padded]])
        title = f"Clips of fewer than {facts.num_frames_per_clip} frames, which repeat the last one"
        advice = "Such padding is normal. Fewer frames per clip (--num-frames) pad less."
        yield from _some(NOTE, title, names, advice, num_good)


def pictures(facts: Facts) -> Findings:
    """Clips that are black, or do not move, and HDR videos."""
    hdr = np.isin(facts.transfer, [name.encode() for name in HDR_TRANSFERS])
    black, still = (np.zeros(len(facts), bool) if chosen is None else chosen for chosen in (facts.black, facts.still))
    for chosen, severity, title, advice in (
        (black, WARNING, "Black clips", "Watch them: a black clip teaches nothing about its class."),
        (still & ~black, WARNING, "Clips that do not move", "Watch them: a frozen recording shows no action."),
        (hdr, NOTE, "HDR videos (PQ or HLG)", "Unless built with --tonemap, they look washed out beside others."),
    ):
        yield from _some(severity, title, facts.names(np.flatnonzero(chosen)), advice, len(facts))


def folder_notes(facts: Facts) -> Findings:
    """Files outside the class folders, and folders that can be read in another way."""
    outside = facts.skipped.get("outside a class folder", 0)
    if facts.notes:
        severity = WARNING if any("link" in note for note in facts.notes) else NOTE
        title, advice = "The folder can be read in another way", "Check that these are the videos that you mean."
        yield Finding(severity, title, f"{'; '.join(facts.notes)}.", advice)
    elif outside:
        title, advice = f"Files outside the class folders: {outside:,}", "Move videos into the folder of their class."
        yield Finding(NOTE, title, "They are left out.", advice)


def shortcuts(study: dict[str, Any]) -> Findings:
    """Metadata that predicts the class, by the result of `find_shortcuts`."""
    significant = [result for result in study["results"] if result["is_significant"]]
    alone = [result for result in study["results"][1:] if result["is_significant"] or result["classes"]]
    if not significant and not alone:
        return
    is_strong = any((r["accuracy"] - r["chance"]) / (1 - r["chance"]) >= KAPPA_WARNING for r in significant)
    given_away = []
    for name, row in ((result["feature"], row) for result in alone for row in result["classes"]):
        found, mistaken, others = row["num_found"], row["num_mistaken"], row["num_others"]
        is_strong |= found / row["num_videos"] - mistaken / others >= YOUDEN_WARNING
        recall = f"{row['class']} by {name}: {found:,} of {row['num_videos']:,} recognised"
        given_away.append(f"{recall}, {mistaken:,} of {others:,} others mistaken for it.")
    features = join([result["feature"] for result in alone]) or "all metadata together"
    recalls = [f"{result['feature']} {result['accuracy']:.1%}" for result in significant]
    chance = f"chance {1 / study['num_classes']:.1%} (cross-validated on {study['num_videos']:,} videos)"
    yield Finding(
        WARNING if is_strong else NOTE,
        f"The class can be guessed from {features}, without looking at the pictures",
        f"Mean recall: {', '.join([*recalls, chance])}. {join(given_away, ' ')}".strip(),
        "A model learns a difference in camera, source or cutting before it learns what happens. Give all classes "
        "the same mixture, and test on videos of another origin. If length is what differs, this may be no harm.",
    )


def look_alikes(reader: Reader) -> Findings:
    """Clips that look alike without being copies."""

    def examples(chosen: Rows) -> str:
        return f"For example {join([' and '.join(printable(reader.path_of(row)) for row in pair) for pair in chosen])}."

    duplicates = find_duplicates(reader.columns, splits=reader.columns["split"])
    pairs, leaks = duplicates.rows, leaks_among(duplicates, reader.columns["split"])
    clashing, count = pairs[reader.labels[pairs[:, 0]] != reader.labels[pairs[:, 1]]], len(np.unique(pairs))
    if len(leaks.pairs):
        advice = f"{INFLATED} List them: vidcache leaks CACHE; join them: vidcache split CACHE --near-duplicates group."
        detail = f"{leaks.in_words.capitalize()}. {examples(leaks.pairs)}"
        yield Finding(PROBLEM, "Clips of different splits look alike", detail, advice)
    if len(clashing):
        title = f"{plural(len(clashing), 'pair')} of clips look alike, but are under two labels"
        advice = "Watch some: two cuts of one scene can belong to two classes, copies cannot. Correct wrong labels."
        yield Finding(WARNING, title, f"{share(len(clashing), len(pairs))} pairs. {examples(clashing)}", advice)
    if count and not len(leaks.pairs):
        where = f"{share(count, len(reader.rows()))}, in {plural(len(pairs), 'pair')}; none straddle the splits"
        advice = "They add less than as many different clips would."
        yield Finding(NOTE, f"{plural(count, 'clip')} look like others", f"{where}. {examples(pairs)}", advice)


def mirror_images(reader: Reader) -> Findings:
    """Classes that are told apart by left and right."""
    said = mirrored_classes(reader)
    if said:
        advice = "vidtrain mirrors half of the clips: train with --flip 0, and evaluate without videval --tta flip."
        yield Finding(WARNING, "Classes are told apart by left and right", f"{said}.", advice)


CHECKS = (failures, classes, class_sizes, copies, frames, pictures, folder_notes)


def run_checks(facts: Facts, study: dict[str, Any], more: Sequence[Finding] = ()) -> list[Finding]:
    """Check videos, and what `find_shortcuts` says of them; return all findings with `more`, the worst first."""
    findings = [*more, *(finding for check in CHECKS for finding in check(facts)), *shortcuts(study)]
    return sorted(findings, key=lambda finding: list(Severity).index(finding.severity))
