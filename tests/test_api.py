"""`import vidcache`: instant, ten names, each documented; the data set as plain loops and trainers use it."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vidcache
from tests.helpers import tiny_models
from vidcache.errors import MismatchError


def test_the_import_is_instant_and_offers_the_names() -> None:
    code = """
import sys, vidcache
assert set(vidcache.__all__) < set(dir(vidcache))
print(len(vidcache.__all__), vidcache.__version__, {"torch", "numpy", "h5py", "click"} & set(sys.modules))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "10 0.1.0 set()\n" == ended.stdout


@pytest.mark.parametrize("name", vidcache.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(vidcache, name)

    assert value is getattr(vidcache, name)
    assert value.__doc__


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'vidcache' has no attribute 'nothing'"):
        vidcache.nothing  # noqa: B018


@pytest.mark.parametrize(("channels_first", "shape"), [(False, (4, 16, 16, 3)), (True, (3, 4, 16, 16))])
def test_a_data_set_is_a_list_of_clips_with_labels(
    cache_file: Path, channels_first: bool, shape: tuple[int, ...]
) -> None:
    dataset = vidcache.ClipDataset(cache_file, "train", channels_first=channels_first)
    clips = list(dataset)  # type: ignore[call-overload]  # ends by IndexError, as torch's data sets do

    assert len(dataset) == len(clips) == len(dataset.paths) == len(dataset.labels)
    assert all(shape == tuple(clip.shape) and isinstance(label, int) for clip, label in clips)
    assert dataset.labels.tolist() == [label for _, label in clips]
    assert all(
        path.split("/")[0] == dataset.classes[label] for path, (_, label) in zip(dataset.paths, clips, strict=True)
    )
    assert f"ClipDataset(train of {cache_file}: {len(clips)} clips {shape}, 3 classes)" == repr(dataset)
    with pytest.raises(IndexError, match=f"clip {len(clips)} of {len(clips)}"):
        dataset[len(clips)]


def test_a_transform_is_applied_to_every_clip_also_in_worker_processes(cache_file: Path) -> None:
    from torch.utils.data import DataLoader

    dataset = vidcache.ClipDataset(cache_file, "train", _mean, channels_first=True)
    with vidcache.CacheReader(cache_file) as reader:
        means = reader.read(reader.rows("train")).mean((1, 2, 3))
    loaded = [clips for clips, _ in DataLoader(dataset, 3, num_workers=1)]

    assert np.allclose(means, np.concatenate([clips.numpy() for clips in loaded]), atol=1e-3)
    assert len(pickle.loads(pickle.dumps(dataset))) == len(dataset)


def _mean(clip):  # type: ignore[no-untyped-def]
    assert 3 == len(clip)
    return clip.float().mean((1, 2, 3))


def test_normalize_gives_what_the_model_takes() -> None:
    import torch

    clips = torch.full((2, 4, 16, 16, 3), 255, dtype=torch.uint8)
    found = vidcache.normalize(clips)

    assert (2, 3, 4, 16, 16) == tuple(found.shape)
    assert pytest.approx((1 - 0.43216) / 0.22803, abs=1e-5) == float(found[0, 0, 0, 0, 0])
    for wrong in (clips.float(), clips[0], clips[..., :2]):
        with pytest.raises(ValueError, match=r"not \(B, T, H, W, 3\) and uint8"):
            vidcache.normalize(wrong)


def test_a_checkpoint_is_loaded_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="No such file"):
        vidcache.load_checkpoint(str(tmp_path / "best.pt"))


def test_the_public_functions_go_from_videos_to_predictions(raw_dir: Path, tmp_path: Path) -> None:
    """As in a notebook: what the docstring of the package promises, one line each."""
    cache, checkpoint = tmp_path / "cache.h5", tmp_path / "best.pt"
    with tiny_models():
        report = vidcache.build_cache(raw_dir, cache, spec=vidcache.Spec(4, 16, 16))
        result = vidcache.train(cache, checkpoint, weights="none", freeze="none", epochs=1, batch_size=4, device="cpu")
        evaluation = vidcache.evaluate(cache, checkpoint)
        predictions = list(vidcache.predict(checkpoint, raw_dir, device="cpu"))

    assert (9, 0) == (report.num_videos, report.num_failed)
    assert 1 == len(result.epochs)
    assert vidcache.load_checkpoint(checkpoint).classes == ("jump", "run")
    with vidcache.CacheReader(cache) as reader:
        assert vidcache.Spec(4, 16, 16) == reader.spec
        assert evaluation.metrics.num_clips == len(reader.rows("test"))
    assert 9 == len(predictions)
    assert all(prediction.top[0] for prediction in predictions)
