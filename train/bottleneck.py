"""What the times of a step mean: what bounds it, which knob to turn, what storage it needs. Pure arithmetic and words.

A knob is named with a number that was measured in the same run; what was not is only something to try.
"""

import dataclasses

from vidcache.text import plural
from vidcache.train.measured import COMPUTE, NAMES, WORTH, Measured, Pair

FREEZABLE = ("none", "stem", "layer1", "layer2", "layer3", "layer4")
STEADY = 1.25  # how far the slowest of equal steps is from the fastest on a machine that has nothing else to do
LARGE = 0.1  # share of a step from which a stage's own spread counts


@dataclasses.dataclass(frozen=True)
class Storage:
    """What the device asks of the storage; MB are millions of bytes of clips.

    Attributes:
        clips_per_second: That the device takes when it never waits.
        needed_mb_per_second: These, in bytes.
        warm_mb_per_second: From memory.
        cold_mb_per_second: From the disk; None where it was not measured.
        is_enough: The disk alone is fast enough; None is not known.
        is_enough_from_memory: The page cache is, and the clips of an epoch fit into it, as far as is known.
    """

    clips_per_second: float
    needed_mb_per_second: float
    warm_mb_per_second: float
    cold_mb_per_second: float | None
    is_enough: bool | None
    is_enough_from_memory: bool


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the times mean.

    Attributes:
        bound_by: "compute" or "reading".
        bottleneck: A key of `NAMES`.
        knobs: What to turn, a sentence each.
        sentences: All that is to be said, the knobs among them.
        storage: What the device asks of the storage.
    """

    bound_by: str
    bottleneck: str
    knobs: tuple[str, ...]
    sentences: tuple[str, ...]
    storage: Storage


def judge(found: Measured) -> Verdict:
    """Say what bounds a step and what to do about it.

    Reading goes on while the device computes, so the slower of the two bounds a step. Clips that fit into memory come
    from the disk in the first epoch only.
    """
    compute, clips = found.compute_seconds, plural(found.batch_size, "clip")
    reading = "read_cold" if found.fits_memory is False and found.cold else "read_warm"
    seconds = found.times[reading].median
    if seconds > compute:
        bound_by, bottleneck = "reading", reading
        knobs = _reading_knobs(found, reading)
        said = [
            f"Bound by reading: the {clips} of a step take {in_time(seconds)} to be {NAMES[reading]}, the work on them "
            f"{in_time(compute)}.",
            f"Bottleneck: {NAMES[reading]}.",
        ]
    else:
        bound_by, bottleneck = "compute", max(COMPUTE, key=lambda name: found.stages[name].median)
        knobs = _compute_knobs(found, bottleneck)
        said = [
            f"Bound by compute: the work of a step takes {in_time(compute)}; its {clips} are {NAMES[reading]} in "
            f"{in_time(seconds)} meanwhile.",
            f"Bottleneck: {NAMES[bottleneck]}, {found.stages[bottleneck].median / compute:.0%} of that work.",
        ]
    storage = _storage(found)
    said += [*knobs, *_first_epoch(found, bound_by), _loop(found), *_noise(found), _storage_in_words(found, storage)]
    return Verdict(bound_by, bottleneck, tuple(knobs), tuple(said), storage)


def in_time(seconds: float) -> str:
    """Return a duration with three digits and its unit.

    >>> in_time(12.34), in_time(0.9999), in_time(0.0123), in_time(0.00004)
    ('12.3 s', '1.00 s', '12.3 ms', '0.04 ms')
    """
    value, unit = (seconds, "s") if seconds >= 0.9995 else (1000 * seconds, "ms")
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def in_mb(rate: float) -> str:
    """Return MB/s with as many digits as mean something.

    >>> in_mb(7123.4), in_mb(0.456)
    ('7,123 MB/s', '0.46 MB/s')
    """
    return f"{rate:,.0f} MB/s" if rate >= 10 else f"{rate:.2g} MB/s"


def _measured(pair: Pair) -> str:
    """Say what another way gave."""
    return (
        f"measured x{pair.speedup:.2f} as fast ({in_time(pair.other.median)} instead of {in_time(pair.now.median)}, "
        f"n = {pair.other.count})"
    )


def _reading_knobs(found: Measured, reading: str) -> list[str]:
    pair, knobs = found.cold if reading == "read_cold" else found.warm, []
    threads = 2 * found.reader_threads
    if pair.is_worth_it:
        knobs.append(f"Turn --reader-threads {threads}: {_measured(pair)}.")
    else:
        knobs.append(f"More --reader-threads do not help: with {threads}, {_measured(pair)}.")
    cold, warm = found.cold.now, found.warm.now
    if reading == "read_cold" and cold.median > WORTH * warm.median:
        knobs.append(
            f"Give it more memory, or put the cache on a faster disk: from memory, measured "
            f"x{cold.median / warm.median:.1f} as fast ({in_time(warm.median)}, n = {warm.count}). The clips of an "
            f"epoch need {_gb(found.epoch_bytes)}, {_gb(found.memory_bytes or 0)} are there."
        )
    return [*knobs, "Try fewer --num-frames-used (not measured): less of each clip is read."]


def _compute_knobs(found: Measured, bottleneck: str) -> list[str]:
    if bottleneck == "copy":
        return [
            "Try fewer --num-frames-used, or a cache of smaller pictures (vidcache build --size), both not measured: "
            "there is less to copy. Copies are made from pinned memory, while the device computes."
        ]
    if bottleneck in ("optimizer", "other"):
        times, size = found.stages[bottleneck], found.batch_size
        return [
            f"Turn --batch-size {2 * size}: {NAMES[bottleneck]} is done once a step, measured {in_time(times.median)} "
            f"(n = {times.count}), {in_time(times.median / size)} a clip; with twice the clips half of that."
        ]
    knobs = []
    if bottleneck == "augment" and found.augment == "exact" and found.augmented.is_worth_it:
        knobs.append(f"Turn --augment linear: {_measured(found.augmented)}.")
    if bottleneck != "augment":
        knobs += _precision_knobs(found)
    knobs += _feature_knobs(found)
    more = FREEZABLE[FREEZABLE.index(found.freeze) + 1 :][:1] if found.freeze in FREEZABLE else ()
    freeze = f", or --freeze {more[0]}" if more and bottleneck in ("trained", "backward") else ""
    return [*knobs, f"Try fewer --num-frames-used{freeze} (not measured): less is computed, and less can be learned."]


def _precision_knobs(found: Measured) -> list[str]:
    if found.precision not in ("off", "bf16-prefix"):
        return []
    if found.precision == "bf16-prefix" or found.freeze == "none":
        gain = ""
    elif found.frozen.is_worth_it:
        after = found.compute_seconds - found.stages["frozen"].median * (1 - 1 / found.frozen.speedup)
        gain = (
            f"the frozen stages in bf16 were {_measured(found.frozen)}, which would make the work of a step "
            f"x{found.compute_seconds / after:.2f} as fast"
        )
    elif found.frozen:
        return [f"bf16 does not help: the frozen stages in it were {_measured(found.frozen)}."]
    else:
        return [f"bf16 does not help: {found.no_bf16}."]
    if found.amp == "auto":
        said = f"--amp auto chose {'float32' if found.precision == 'off' else found.precision}: {found.reason}."
        if gain:
            said = f"To gain by bf16: {gain}; but {said}"
        if found.is_untrained:
            said += " These weights are random: ask again with --ckpt, or --weights kinetics400."
        return [said]
    if gain:
        return [f"Turn --amp auto, which takes bf16 where gradients stay right: {gain}."]
    return ["Try --amp auto (not measured): it times steps in bf16 and compares their gradients."]


def _feature_knobs(found: Measured) -> list[str]:
    """What is saved by what is computed once; how long it takes to read that is not known."""
    once, compute = found.stages["augment"].median + found.stages["frozen"].median, found.compute_seconds
    if found.freeze == "none" or compute <= WORTH * (compute - once):
        return []
    computing = once / found.batch_size * found.num_train_clips
    return [
        f"Give vidtrain --feature-cache K: augmentation and frozen stages, measured {in_time(once)} of "
        f"{in_time(compute)}, are computed once for K views of each clip and not in every epoch; without them a step "
        f"is x{compute / (compute - once):.2f} as fast, less what reading their result costs. Each view of the "
        f"{plural(found.num_train_clips, 'training clip')} takes {in_time(computing)} to compute."
    ]


def _first_epoch(found: Measured, bound_by: str) -> list[str]:
    """What is to be said of clips that come from the disk once, and from memory later."""
    if bound_by == "reading" or found.fits_memory is False or found.cold.now.median <= found.compute_seconds:
        return []
    size, there = _gb(found.epoch_bytes), found.memory_bytes
    return [
        f"The first epoch is bound by reading: the clips of a step take {in_time(found.cold.now.median)} to be read "
        f"from the disk. Later ones are not, {'as' if there else 'if'} the {size} of an epoch fit into memory"
        f"{f' ({_gb(there)} are there)' if there else ''}."
    ]


def _loop(found: Measured) -> str:
    step, total = found.step, found.compute_seconds + found.warm.now.median
    return (
        f"The loop as it trains took {in_time(step.median)} a step ({in_time(step.low)} to {in_time(step.high)}, "
        f"n = {step.count}), {found.waited_fraction:.1%} of it waiting for clips; its stages, one after the other, "
        f"take {in_time(total)}."
    )


def _noise(found: Measured) -> list[str]:
    """Name what makes these numbers doubtful."""
    large = [times for name, times in found.stages.items() if found.shares[name] > LARGE]
    varied = max(times.high / times.low for times in (found.step, *large))
    apart = found.step.median * (1 - found.waited_fraction) / found.compute_seconds
    if max(varied, apart) <= STEADY:
        return []
    what = (
        f"Equal work took up to x{varied:.1f} as long"
        if varied >= apart
        else f"Without waiting, the loop took x{apart:.1f} as long as its stages"
    )
    load = (
        "" if found.load is None else f" (load {found.load:.1f} on {plural(found.num_cpus, 'CPU')} before this began)"
    )
    return [f"{what}: something else takes the machine's time{load}. Measure again when it is idle."]


def _storage(found: Measured) -> Storage:
    # The loop can be faster than its stages, which are waited for one by one.
    seconds = min(found.compute_seconds, found.step.median)
    megabytes = found.batch_size * found.clip_bytes / 1e6
    needed, warm = megabytes / seconds, megabytes / found.warm.now.median
    cold = megabytes / found.cold.now.median if found.cold else None
    return Storage(
        clips_per_second=found.batch_size / seconds,
        needed_mb_per_second=needed,
        warm_mb_per_second=warm,
        cold_mb_per_second=cold,
        is_enough=None if cold is None else cold >= needed,
        is_enough_from_memory=warm >= needed and found.fits_memory is not False,
    )


def _storage_in_words(found: Measured, storage: Storage) -> str:
    cold, warm = storage.cold_mb_per_second, in_mb(storage.warm_mb_per_second)
    gave = "was not measured" if cold is None else f"gave {in_mb(cold)}"
    unknown = "" if found.fits_memory else ", if the clips of an epoch fit there"
    if storage.is_enough:
        verdict = "enough"
    elif storage.is_enough_from_memory:
        verdict = f"{'enough' if cold is None else 'not enough for the first epoch, enough'} from memory{unknown}"
    else:
        verdict = "not enough"
    note = f" ({found.cold_note})" if found.cold_note else ""
    return (
        f"The device takes {storage.clips_per_second:.3g} clips/s, which needs "
        f"{in_mb(storage.needed_mb_per_second)} of storage; this disk {gave} cold{note}, memory {warm}: {verdict}."
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
