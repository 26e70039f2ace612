"""Whether clips that a model is judged by look like clips that it was trained on."""

import dataclasses

import numpy as np

from vidcache.cache.layout import Split
from vidcache.cache.leaks import find_leaks
from vidcache.cache.reader import Reader
from vidcache.eval.evaluate import Predictions
from vidcache.eval.uncertainty import wilson_interval
from vidcache.text import plural


@dataclasses.dataclass(frozen=True)
class Cleanliness:
    """What the leak guard says of the evaluated split.

    Attributes:
        num_leaked: Evaluated clips that look like a clip of another split.
        num_clean: The others.
        num_clean_correct: Of these, how many were recognised.
        clean_accuracy: Their ratio; None without clean clips.
        clean_low: Lower end of its 95 % Wilson interval; None without clean clips.
        clean_high: Upper end.
    """

    num_leaked: int
    num_clean: int
    num_clean_correct: int
    clean_accuracy: float | None
    clean_low: float | None
    clean_high: float | None

    @property
    def in_words(self) -> str:
        """One line."""
        if not self.num_leaked:
            return "none: no evaluated clip looks like a clip of another split"
        verb = "looks" if self.num_leaked == 1 else "look"
        said = f"{plural(self.num_leaked, 'clip')} {verb} like clips of another split (vidcache leaks)"
        if self.clean_accuracy is None:
            return f"{said}, and no clip is left without them"
        return (
            f"{said}; without them {self.num_clean_correct} of {self.num_clean} right = {self.clean_accuracy:.1%} "
            f"({self.clean_low:.1%} to {self.clean_high:.1%})"
        )


def check_split(reader: Reader, split: str, predictions: Predictions) -> Cleanliness:
    """Look for evaluated clips that the model may have seen in another guise.

    Args:
        reader: The cache.
        split: The evaluated one.
        predictions: Of its clips.
    """
    clean = ~np.isin(predictions.rows, find_leaks(reader).rows_of(Split[split.upper()]))
    right = predictions.probabilities.argmax(axis=1) == predictions.labels
    num_clean, num_right = int(clean.sum()), int((right & clean).sum())
    low, high = wilson_interval(num_right, num_clean) if num_clean else (None, None)
    return Cleanliness(
        num_leaked=len(clean) - num_clean,
        num_clean=num_clean,
        num_clean_correct=num_right,
        clean_accuracy=num_right / num_clean if num_clean else None,
        clean_low=low,
        clean_high=high,
    )
