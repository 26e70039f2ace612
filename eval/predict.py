"""From video files to predictions: the decode of `build`, the normalisation of `videval`.

Videos are decoded in threads, since the work is in their child processes, while the model runs on those before them.
"""

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from vidcache.checkpoint import Checkpoint
from vidcache.errors import MismatchError
from vidcache.eval.inference import to_input
from vidcache.model import R3D18
from vidcache.preprocess.executors import find_all_tools
from vidcache.preprocess.video.decode import DecodeLimits, decode_video
from vidcache.preprocess.video.ffmpeg import FFmpegBinaries, SubprocessGroup, bound_workers
from vidcache.preprocess.video.source_file import Failure
from vidcache.sampling import sample_indices
from vidcache.spec import Spec
from vidcache.text import printable

if TYPE_CHECKING:  # matplotlib takes half a second to import: only for explanations
    from vidcache.plotting import Filmstrip

TOP = 5  # as in `vidcache.eval.metrics`, which takes 2 s to import (scikit-learn)

Clip = npt.NDArray[np.uint8]
Outcome = Clip | Failure


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """How to predict; the defaults are those of the command, which has a worker for each CPU.

    Attributes:
        batch_size: Videos at a time for the model.
        workers: Videos decoded at a time.
        device: Where the model is.
        limits: Bounds for one video.
        ffmpeg_dir: Folder of the ffmpeg to use; None finds one.
        explain: Show what the most probable class was found in.
        where: Name of the checkpoint, for messages.
    """

    batch_size: int = 16
    workers: int = 1
    device: str = "cpu"
    limits: DecodeLimits = DecodeLimits()
    ffmpeg_dir: Path | None = None
    explain: bool = False
    where: str = "checkpoint"


@dataclasses.dataclass(frozen=True)
class VideoPrediction:
    """What a model says of a video file.

    Attributes:
        video: The file.
        top: At most 5 (class name, probability), most probable first; empty if it failed.
        failure: "reason: detail", or empty.
        explanation: The most probable class in the frames, if asked for.
    """

    video: Path
    top: tuple[tuple[str, float], ...]
    failure: str
    explanation: "Filmstrip | None" = None


def predict_videos(
    videos: Sequence[Path], checkpoint: Checkpoint, model: R3D18, options: PredictOptions
) -> Generator[VideoPrediction, None, None]:
    """Predict video files, in their order; a bad one does not stop the rest.

    Batches are of consecutive videos, so that they never depend on which was decoded first. At most two batches of
    clips, and one for each worker, are in memory. Closing the generator ends the decoding.

    Args:
        videos: Files.
        checkpoint: Says how a clip is made and what the classes are.
        model: Of the checkpoint, in evaluation mode, on the device.
        options: How.

    Yields:
        Predictions, a batch at a time.

    Raises:
        InputError: There is no ffmpeg, or it vanishes.
        MismatchError: A prediction is not finite.
    """
    tools = find_all_tools(options.ffmpeg_dir)
    options = dataclasses.replace(options, workers=bound_workers(options.workers)[0])
    frames = sample_indices(checkpoint.spec.num_frames, checkpoint.num_frames_used)
    with contextlib.closing(_decode_ahead(videos, frames, checkpoint.spec, tools, options)) as outcomes:
        decoded = zip(videos, outcomes, strict=True)
        while batch := list(itertools.islice(decoded, options.batch_size)):
            yield from _predict_batch(batch, checkpoint.classes, model, options)


def _decode_ahead(
    videos: Sequence[Path],
    frames: npt.NDArray[np.int64],
    spec: Spec,
    tools: list[FFmpegBinaries],
    options: PredictOptions,
) -> Generator[Outcome, None, None]:
    """Give the frames of each video, or why there are none, in order, and decode the next ones meanwhile."""

    def decode(video: Path) -> Outcome:
        try:
            return decode_video(video, spec, tools, children, options.limits).clip[frames]
        except Failure as failure:
            return failure

    # A window, not joblib's generator as in a build: that decodes on whether anybody takes the clips or not.
    # On a CPU model and decoders would want the same cores, and torch's threads wait for each other: one batch is
    # decoded, then the model has all cores.
    is_apart = torch.device(options.device).type != "cpu"
    window = options.batch_size + (options.workers if is_apart else 0)
    waiting: collections.deque[Future[Outcome]] = collections.deque()
    with SubprocessGroup() as children, ThreadPoolExecutor(options.workers) as pool:
        try:
            for video in videos:
                waiting.append(pool.submit(decode, video))
                if len(waiting) == window:
                    for _ in range(1 if is_apart else window):
                        yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            children.close()  # the pool waits for its threads, and they for their children
            pool.shutdown(cancel_futures=True)


def _predict_batch(
    batch: list[tuple[Path, Outcome]],
    classes: tuple[str, ...],
    model: R3D18,
    options: PredictOptions,
) -> Iterator[VideoPrediction]:
    clips = [outcome for _, outcome in batch if not isinstance(outcome, Failure)]
    answers = iter(_run_model(np.stack(clips), model, options) if clips else ())
    for video, outcome in batch:
        if isinstance(outcome, Failure):
            yield VideoPrediction(video, (), str(outcome))
            continue
        probabilities, heat = next(answers)
        if not probabilities.isfinite().all():
            raise MismatchError(
                f"{options.where}: says nothing finite of {printable(video)}, expected probabilities. Its weights have "
                "diverged or are damaged: train again"
            )
        best = probabilities.argsort(descending=True, stable=True)[:TOP].tolist()
        top = tuple((classes[k], float(probabilities[k])) for k in best)
        yield VideoPrediction(video, top, "", None if heat is None else _explain(video, top[0], outcome, heat))


def _run_model(
    clips_BTHWC: Clip, model: R3D18, options: PredictOptions
) -> Iterator[tuple[torch.Tensor, npt.NDArray[np.float32] | None]]:
    """Give the probabilities (K,) of each clip, and the heat (T, H, W) of its most probable class, if asked for."""
    # Before inference mode: what is made in it cannot be written to outside of it.
    inputs = to_input(torch.from_numpy(clips_BTHWC).to(options.device))
    if options.explain:
        from vidcache.eval.gradcam import grad_cam

        logits, heat = grad_cam(model, inputs)
        return zip(logits.softmax(1).cpu(), heat.cpu().numpy(), strict=True)
    with torch.inference_mode():
        logits = model(inputs).to(torch.float32)
    return zip(logits.softmax(1).cpu(), itertools.repeat(None))


def _explain(video: Path, best: tuple[str, float], clip: Clip, heat: npt.NDArray[np.float32]) -> "Filmstrip":
    from vidcache.eval.gradcam import explanation_strip

    return explanation_strip(clip, heat, f"{printable(video.name)}: {printable(best[0])} {best[1]:.1%}")
