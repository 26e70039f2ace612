"""The clips that say most of a model: its most confident mistakes, and its least confident hits."""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from vidcache.cache.reader import Reader
from vidcache.checkpoint import Checkpoint
from vidcache.eval.evaluate import Predictions, to_input
from vidcache.eval.explain import grad_cam, overlay
from vidcache.eval.pictures import strip_png
from vidcache.model import R3D18
from vidcache.sampling import sample_indices
from vidcache.text import printable

NUM_MISTAKES, NUM_HITS = 8, 6
# Noise compresses worst: 22 strips of 6 frames of 88 x 88 are 4.1 MB of base64 then, and the report stays below 5 MB.
_FRAMES, _SIDE = 6, 88

# From a clip (T, H, W, 3) and the class that was said of it to the clip with what speaks for the class made visible.
Explain = Callable[[npt.NDArray[np.uint8], int], npt.NDArray[np.uint8]]


@dataclasses.dataclass(frozen=True)
class Example:
    """A clip with what the model says of it.

    Attributes:
        path: Of the video, printable.
        true: Its class, printable.
        predicted: The class that the model gives it.
        probability: Of that class.
        true_probability: Of the true class.
        png: 6 of its frames side by side.
        explained_png: The same frames with what speaks for the predicted class; empty if it was not asked for.
    """

    path: str
    true: str
    predicted: str
    probability: float
    true_probability: float
    png: bytes
    explained_png: bytes = b""


def mistakes_and_hits(
    reader: Reader, predictions: Predictions, explain: Explain | None = None
) -> tuple[list[Example], list[Example]]:
    """Choose clips and draw them.

    Args:
        reader: The cache.
        predictions: Of some of its clips.
        explain: Draws what speaks for the predicted class, for the mistakes; None leaves that out.

    Returns:
        At most 8 mistakes, the most confident first, and at most 6 hits, the least confident first.
    """
    guesses = predictions.probabilities.argmax(axis=1)
    sure = predictions.probabilities.max(axis=1)
    right = guesses == predictions.labels
    wrong = np.flatnonzero(~right)
    hits = np.flatnonzero(right)
    chosen = wrong[np.argsort(-sure[wrong], kind="stable")][:NUM_MISTAKES]
    weakest = hits[np.argsort(sure[hits], kind="stable")][:NUM_HITS]

    def example(n: int, explain: Explain | None) -> Example:
        row, label, guess = int(predictions.rows[n]), int(predictions.labels[n]), int(guesses[n])
        clip = reader.read([row])[0]
        frames = sample_indices(max(int(reader.columns["num_real"][row]), 1), _FRAMES)
        return Example(
            path=printable(reader.path_of(row)),
            true=printable(reader.classes[label]),
            predicted=printable(reader.classes[guess]),
            probability=float(sure[n]),
            true_probability=float(predictions.probabilities[n, label]),
            png=strip_png(clip[frames], _SIDE),
            explained_png=strip_png(explain(clip, guess)[frames], _SIDE) if explain else b"",
        )

    return [example(n, explain) for n in chosen.tolist()], [example(n, None) for n in weakest.tolist()]


def explainer(model: R3D18, checkpoint: Checkpoint, device: str) -> Explain:
    """Return what draws, into a clip, what speaks for a class; see `vidcache.eval.explain`.

    Args:
        model: Of the checkpoint, in evaluation mode, on the device.
        checkpoint: Says which frames the model is shown; another frame has the heat of the last one before it that is.
        device: Where the model is.
    """
    num_frames = checkpoint.spec.num_frames
    frames = sample_indices(num_frames, checkpoint.num_frames_used)
    shown = np.searchsorted(frames, np.arange(num_frames), side="right") - 1

    def explain(clip: npt.NDArray[np.uint8], label: int) -> npt.NDArray[np.uint8]:
        inputs = to_input(torch.from_numpy(clip[frames])[None].to(device))
        _, heat = grad_cam(model, inputs, torch.tensor([label]))
        return overlay(clip, heat[0].cpu().numpy()[shown])

    return explain
