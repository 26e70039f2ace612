"""What is odd about the classes: their sizes, their places in the split, what gives them away."""

import os
from collections.abc import Iterator

import numpy as np

from vidcache.cache.layout import Split
from vidcache.preprocess.analysis import Facts
from vidcache.preprocess.finding import Finding, Severity, some_names
from vidcache.preprocess.shortcuts import ClassShortcut, Shortcut, Study
from vidcache.preprocess.twins import describe_twins, find_twins
from vidcache.text import plural, printable

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


def shortcuts(facts: Facts, study: Study) -> Iterator[Finding]:
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


def _given_away(facts: Facts, study: Study) -> list[tuple[float, str]]:
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


def _causes(study: Study, telling: list[Shortcut]) -> str:
    features = [s.feature for s in telling] or [s.feature for s in study.alone if s.classes]
    return some_names(features, len(features)) if features else "side effects together"


def _name(facts: Facts, label: int) -> str:
    return printable(facts.classes[label])


def _percent(part: float) -> str:
    return f"{100 * part:.3g}%"
