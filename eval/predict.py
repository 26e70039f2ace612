"""From a video file to a prediction: the decode of `build`, the normalisation of `videval`."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from vidcache.checkpoint import Checkpoint
from vidcache.eval.evaluate import to_input
from vidcache.eval.metrics import TOP
from vidcache.model import R3D18
from vidcache.preprocess.decode import Limits, decode_video
from vidcache.preprocess.failure import Failure
from vidcache.preprocess.ffmpeg import Children, find_tools, find_tools_on_path
from vidcache.sampling import sample_indices


@dataclasses.dataclass(frozen=True)
class VideoPrediction:
    """What a model says of a video file.

    Attributes:
        video: The file.
        top: At most 5 (class name, probability), most probable first; empty if it failed.
        failure: "reason: detail", or empty.
    """

    video: Path
    top: tuple[tuple[str, float], ...]
    failure: str


def predict_videos(
    videos: Sequence[Path],
    checkpoint: Checkpoint,
    model: R3D18,
    limits: Limits,
    ffmpeg_dir: Path | None,
    device: str | torch.device,
) -> Iterator[VideoPrediction]:
    """Predict video files one by one; a bad one does not stop the rest.

    Args:
        videos: Files.
        checkpoint: Says how a clip is made and what the classes are.
        model: Of the checkpoint, in evaluation mode, on `device`.
        limits: Bounds for one video.
        ffmpeg_dir: Folder of the ffmpeg to use; None finds one.
        device: Where the model is.

    Raises:
        InputError: There is no ffmpeg.
    """
    tools = [find_tools(ffmpeg_dir)]
    on_path = find_tools_on_path()
    if on_path and on_path.ffmpeg != tools[0].ffmpeg:
        tools.append(on_path)
    frames = sample_indices(checkpoint.spec.num_frames, checkpoint.num_frames_used)
    with Children() as children:
        for video in videos:
            try:
                clip = decode_video(video.absolute(), checkpoint.spec, tools, children, limits).clip
            except Failure as failure:
                yield VideoPrediction(video, (), str(failure))
                continue
            with torch.inference_mode():
                logits = model(to_input(torch.from_numpy(clip[frames])[None].to(device)))
            probabilities = logits[0].float().softmax(0).cpu()
            best = probabilities.argsort(descending=True, stable=True)[:TOP].tolist()
            top = tuple((checkpoint.classes[k], float(probabilities[k])) for k in best)
            yield VideoPrediction(video, top, "")
