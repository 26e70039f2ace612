"""From video files to predictions: decoded as in a build, normalised as in `videval`.

Videos are decoded in threads, since the work is in their child processes, while the model runs on those before them.
Torch, which takes 2 s to import, is imported inside functions: `vidpredict --help` is instant.
"""

import collections
import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vidcache.cli import choose_device, num_cpus
from vidcache.errors import MismatchError
from vidcache.preprocess.video.decode import DecodeLimits, decode_video
from vidcache.preprocess.video.ffmpeg import SubprocessGroup, bound_workers, find_all_tools
from vidcache.preprocess.video.find import list_videos
from vidcache.preprocess.video.source_file import Failure
from vidcache.spec import sample_indices
from vidcache.text import printable

if TYPE_CHECKING:
    from vidcache.checkpoint import Checkpoint
    from vidcache.model import R3D18
    from vidcache.plotting import Filmstrip

TOP = 5
Clip = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """How to predict.

    Attributes:
        batch_size: Videos per batch of the model.
        workers: Videos decoded in parallel; the default is the number of CPUs.
        device: "cpu", "cuda", "cuda:1", ...; None is cuda if available, else cpu.
        limits: Bounds for one video: seconds, pixels, whether links are followed.
        ffmpeg_dir: Folder of the ffmpeg to use; None finds one.
        explain: Also give the Grad-CAM of the most probable class.
    """

    batch_size: int = 16
    workers: int = dataclasses.field(default_factory=num_cpus)
    device: str | None = None
    limits: DecodeLimits = DecodeLimits()
    ffmpeg_dir: Path | None = None
    explain: bool = False


@dataclasses.dataclass(frozen=True)
class VideoPrediction:
    """The prediction of a model for a video file.

    Attributes:
        video: The file.
        top: At most 5 (class name, probability), most probable first; empty if the video failed.
        failure: Why it could not be decoded, as "reason: detail"; empty if it could.
        explanation: The most probable class in the frames, with `explain=True`.
    """

    video: Path
    top: tuple[tuple[str, float], ...]
    failure: str
    explanation: "Filmstrip | None" = None


def predict(
    checkpoint: "Checkpoint | str | Path", videos: str | Path | Iterable[str | Path], **options: Any
) -> Generator[VideoPrediction, None, None]:
    """Classify video files with a trained model; a video that cannot be decoded does not stop the rest.

    Args:
        checkpoint: A checkpoint of `train`, or its file.
        videos: A video file, or a folder that stands for all videos in it and below; or several of them.
        options: Fields of `PredictOptions`: `batch_size=16`, `workers`, `device`, `limits`, `ffmpeg_dir`, `explain`.

    Returns:
        An iterator over predictions in the order of the videos. The model is loaded at once, videos are decoded as the
        iterator advances; closing it ends the decoding.

    Raises:
        MismatchError: The checkpoint is missing or damaged; later: the model gives NaN or infinity.
        InputError: A folder has no videos; later: there is no ffmpeg.

    Example:
        >>> for prediction in vidcache.predict("best.pt", "new_videos/"):  # doctest: +SKIP
        ...     print(prediction.video, prediction.top[0] if prediction.top else prediction.failure)
    """
    from vidcache.checkpoint import Checkpoint
    from vidcache.eval.inference import load_model

    settings = PredictOptions(**options)
    device = settings.device or choose_device(None)
    paths = [Path(videos)] if isinstance(videos, str | Path) else [Path(video) for video in videos]
    files, _, _ = find_files(paths, follow_links=settings.limits.follow_links)
    where = "checkpoint" if isinstance(checkpoint, Checkpoint) else printable(checkpoint)
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.load(Path(checkpoint))
    model = load_model(loaded, where, device)
    return _predict_files(files, loaded, model, dataclasses.replace(settings, device=device), where)


def find_files(videos: Sequence[Path], *, follow_links: bool = False) -> tuple[list[Path], Counter[str], list[str]]:
    """Replace folders by the videos in and below them; anything else is kept, whatever it is.

    Returns the files in order, how many were left out of folders by reason, and notes for the user. Raises InputError
    if a folder cannot be read or has no videos.
    """
    files, skipped, notes = list[Path](), Counter[str](), list[str]()
    for video in videos:
        if not video.is_dir():
            files.append(video)
            continue
        found, left_out, remarks = list_videos(video, follow_links=follow_links)
        files += found
        skipped.update(left_out)
        notes += [f"{printable(video)}: {remark}" for remark in remarks]
    return files, skipped, notes


def _predict_files(
    files: Sequence[Path], checkpoint: "Checkpoint", model: "R3D18", options: PredictOptions, where: str
) -> Generator[VideoPrediction, None, None]:
    """Predict in batches of consecutive videos, so that no batch depends on which video was decoded first."""
    with contextlib.closing(_decode_ahead(files, checkpoint, options)) as clips:
        decoded = zip(files, clips, strict=True)
        while batch := list(itertools.islice(decoded, options.batch_size)):
            good = [clip for _, clip in batch if not isinstance(clip, Failure)]
            results = _run_model(np.stack(good), model, options) if good else iter(())
            for video, clip in batch:
                if isinstance(clip, Failure):
                    yield VideoPrediction(video, (), str(clip))
                    continue
                probabilities, heat = next(results)
                if not np.isfinite(probabilities).all():
                    raise MismatchError(
                        f"{where}: NaN or inf outputs for {printable(video)}. The weights have diverged or are "
                        "damaged: train again"
                    )
                best = np.argsort(-probabilities, kind="stable")[:TOP].tolist()
                top = tuple((checkpoint.classes[label], float(probabilities[label])) for label in best)
                yield VideoPrediction(video, top, "", None if heat is None else _explain(video, top[0], clip, heat))


def _explain(video: Path, best: tuple[str, float], clip: Clip, heat: npt.NDArray[np.float32]) -> "Filmstrip":
    from vidcache.eval.gradcam import explanation_strip

    return explanation_strip(clip, heat, f"{printable(video.name)}: {printable(best[0])} {best[1]:.1%}")


def _decode_ahead(
    files: Sequence[Path], checkpoint: "Checkpoint", options: PredictOptions
) -> Generator[Clip | Failure, None, None]:
    """Give the clip of each video in order, or why there is none, and decode a bounded number of the next meanwhile."""
    frames = sample_indices(checkpoint.spec.num_frames, checkpoint.num_frames_used)
    tools, workers = find_all_tools(options.ffmpeg_dir), bound_workers(options.workers)[0]

    def decode(video: Path) -> Clip | Failure:
        try:
            return decode_video(video, checkpoint.spec, tools, children, options.limits).clip[frames]
        except Failure as failure:
            return failure

    waiting: collections.deque[Future[Clip | Failure]] = collections.deque()
    with SubprocessGroup() as children, ThreadPoolExecutor(workers) as pool:
        try:
            for video in files:
                waiting.append(pool.submit(decode, video))
                if len(waiting) == options.batch_size + workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            children.close()  # the pool waits for its threads, and they for their children
            pool.shutdown(cancel_futures=True)


def _run_model(
    clips_BTHWC: Clip, model: "R3D18", options: PredictOptions
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]]:
    """Give the probabilities (K,) of each clip and, with `explain`, the heat (T, H, W) of its most probable class."""
    import torch

    from vidcache.pixels import normalize

    inputs = normalize(torch.from_numpy(clips_BTHWC).to(options.device))
    if options.explain:
        from vidcache.eval.gradcam import grad_cam

        logits, heat = grad_cam(model, inputs)
        return zip(logits.softmax(1).cpu().numpy(), heat.cpu().numpy(), strict=True)
    with torch.inference_mode():
        logits = model(inputs).to(torch.float32)
    return zip(logits.softmax(1).cpu().numpy(), itertools.repeat(None))
