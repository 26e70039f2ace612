"""A model asked about several views of each clip: its mirror image, other frames of it; the answers are averaged."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from vidcache.eval.evaluate import to_input
from vidcache.pixels import Workspace


class Views:
    """A function from clips to logits: those of the mean probability over the views of each clip.

    Args:
        model: (B, 3, T', H, W) float32 to logits (B, K), in evaluation mode.
        num_frames: Frames of a clip (T).
        num_frames_used: Frames that the model is shown (T').
        num_views: How many evenly shifted choices of T' of the T frames; see `view_frames`.
        flip: Show each view mirrored as well.

    Attributes:
        frames: Which frames of a clip are to be read: those of all views, ascending.

    Raises:
        ValueError: There are not so many different views.
    """

    def __init__(
        self,
        model: Callable[[torch.Tensor], torch.Tensor],
        num_frames: int,
        num_frames_used: int,
        *,
        num_views: int = 1,
        flip: bool = False,
    ) -> None:
        views = view_frames(num_frames, num_frames_used, num_views)
        self.frames = np.unique(views)
        self._model, self._flip = model, flip
        self._places = [torch.from_numpy(np.searchsorted(self.frames, view)) for view in views]
        self._workspace = Workspace()

    def __call__(self, clips_BTHWC: torch.Tensor) -> torch.Tensor:
        """From uint8 RGB clips of the frames `frames`, on any device, to float32 logits (B, K)."""
        if len(self._places) == 1 and not self._flip:
            return self._model(to_input(clips_BTHWC, self._workspace)).to(torch.float32)
        if self._places[0].device != clips_BTHWC.device:
            self._places = [places.to(clips_BTHWC.device) for places in self._places]  # once, not for every batch
        said: list[torch.Tensor] = []
        for places in self._places:
            view = clips_BTHWC if len(self._places) == 1 else clips_BTHWC[:, places]
            inputs = to_input(view, self._workspace)
            said += [self._model(inputs)] + ([self._model(inputs.flip(-1))] if self._flip else [])
        # The logarithm of the mean probability, also where a probability is too small for a float.
        return torch.stack([logits.to(torch.float32).log_softmax(1) for logits in said]).logsumexp(0) - math.log(
            len(said)
        )


def view_frames(num_frames: int, num_used: int, num_views: int) -> npt.NDArray[np.int64]:
    """Choose frames for each view: the first is what the model was trained on, the others are shifted evenly.

    With the distance s = (T - 1) / (T' - 1) between two frames, frame i of view v is floor((i + v / V) * s), in exact
    integers, or the last frame where that is beyond it.

    Returns:
        (V, T') frame numbers, no view twice.

    Raises:
        ValueError: More views than there are different ones.

    >>> view_frames(9, 3, 2).tolist()
    [[0, 4, 8], [2, 6, 8]]
    """
    views = _shifted(num_frames, num_used, num_views)
    if len(np.unique(views, axis=0)) < num_views:
        most = next(
            n
            for n in range(min(num_views, 2 * num_frames), 0, -1)
            if len(np.unique(_shifted(num_frames, num_used, n), axis=0)) == n
        )
        raise ValueError(
            f"{num_views} views of {num_used} of {num_frames} frames, expected at most {most}: the others are the same"
        )
    return views


def _shifted(num_frames: int, num_used: int, num_views: int) -> npt.NDArray[np.int64]:
    slot, view = np.arange(num_used), np.arange(num_views)[:, None]
    if num_used == 1:
        return np.asarray(view * num_frames // num_views)
    shifted = (slot * num_views + view) * (num_frames - 1) // (num_views * (num_used - 1))
    return np.asarray(np.minimum(shifted, num_frames - 1))
