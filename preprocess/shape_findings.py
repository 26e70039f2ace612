"""What is odd about lengths, rates, sizes and encodings."""

import math
from collections.abc import Iterator

import numpy as np

from vidcache.preprocess.analysis import Facts
from vidcache.preprocess.chance import dependence
from vidcache.preprocess.finding import Finding, Severity, amount, share, some_names
from vidcache.text import plural, printable

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
