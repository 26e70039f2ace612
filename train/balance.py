"""Class imbalance: which clips an epoch draws, what each class weighs in the loss, and an audit."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import WeightedRandomSampler

from vidcache.cache.stream import epoch_order

BALANCES = ("both", "sampler", "loss", "none")


def class_weights(labels: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.float64]:
    """Weigh every class inversely to its frequency: `n / (K' * n_class)`.

    As scikit-learn's `class_weight="balanced"`: the weights of all clips sum to n.

    Args:
        labels: (n,) of the training clips.
        num_classes: Classes (K), of which K' occur.

    Returns:
        (K,) weights; 0 for a class without clips.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = np.zeros(num_classes)
    present = counts > 0
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def epoch_rows(
    rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], balance: str, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """Choose the clips of one epoch: a function of `(seed, epoch)` only.

    With a sampler, n draws with replacement in which every class is equally likely; without, every
    clip once.

    Args:
        rows: (n,) training rows.
        labels: (n,) their classes.
        balance: One of `BALANCES`.
        seed: Of the run.
        epoch: From 1.

    Returns:
        (n,) of `rows`, in the order in which they are to be shown.

    Raises:
        ValueError: There is no such balance.
    """
    if balance not in BALANCES:
        raise ValueError(f"balance {balance!r}, expected one of {', '.join(BALANCES)}")
    if balance in ("loss", "none"):
        return epoch_order(rows, seed, epoch)
    weights = class_weights(labels, int(labels.max()) + 1)[labels]
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    generator = torch.Generator().manual_seed(state)
    sampler = WeightedRandomSampler(weights.tolist(), len(rows), generator=generator)
    return rows[np.fromiter(sampler, np.int64, len(rows))]


def loss_weights(labels: npt.NDArray[np.int64], num_classes: int, balance: str) -> npt.NDArray[np.float32] | None:
    """Return the (K,) class weights of the loss, or None when it is not weighted."""
    if balance not in ("both", "loss"):
        return None
    return class_weights(labels, num_classes).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ClassAudit:
    """What balancing does to one class.

    Attributes:
        class_name: The class.
        num_clips: Training clips.
        expected_draws: Per epoch.
        expected_distinct: Different clips among these.
        loss_weight: Of each of its clips in the loss.
        influence: Share of the total loss weight of an epoch, divided by an equal share.
    """

    class_name: str
    num_clips: int
    expected_draws: float
    expected_distinct: float
    loss_weight: float
    influence: float


def audit(classes: Sequence[str], labels: npt.NDArray[np.int64], balance: str) -> list[ClassAudit]:
    """Work out what sampler and loss weights together do to each class.

    Args:
        classes: Names (K).
        labels: (n,) of the training clips.
        balance: One of `BALANCES`.
    """
    counts = np.bincount(labels, minlength=len(classes))
    present = counts > 0
    draws = distinct = counts.astype(float)
    if balance in ("both", "sampler"):
        draws = np.where(present, len(labels) / present.sum(), 0.0)
        # Each of all draws of an epoch hits a given clip of a class with this probability.
        hit = 1 / (present.sum() * np.maximum(counts, 1))
        distinct = counts * (1 - (1 - hit) ** len(labels))
    weights = class_weights(labels, len(classes)) if balance in ("both", "loss") else present.astype(float)
    shares = draws * weights
    influence = shares / shares.sum() * present.sum()
    return [
        ClassAudit(name, int(counts[k]), float(draws[k]), float(distinct[k]), float(weights[k]), float(influence[k]))
        for k, name in enumerate(classes)
    ]
