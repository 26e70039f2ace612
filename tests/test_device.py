"""Switches that a run sets and sets back, and what is said when memory is full."""

import os

import pytest
import torch

from vidcache.errors import VidcacheError
from vidcache.train.loop import backends, oom_hint


def switches() -> tuple[object, ...]:
    return (
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.mark.parametrize("deterministic", [False, True])
def test_switches_are_set_and_set_back(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = switches()

    with pytest.raises(RuntimeError, match="stop"), backends(deterministic=deterministic):
        assert (not deterministic, True, True, deterministic) == switches()
        assert (":4096:8" if deterministic else None) == os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        raise RuntimeError("stop")

    assert before == switches()
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_what_has_no_deterministic_algorithm_is_an_error() -> None:
    with (
        backends(deterministic=True),
        pytest.raises(RuntimeError, match="does not have a deterministic implementation"),
    ):
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "num_ranks", "at_once", "advice"),
    [
        (16, 1, 1, 16, "Try --batch-size 8, or --grad-accum-steps 2, which keeps 16 clips to a step"),
        (16, 2, 1, 8, "Try --batch-size 8, or --grad-accum-steps 4, which keeps 16 clips to a step"),
        (16, 1, 2, 8, "Try --batch-size 8, or --grad-accum-steps 2, which keeps 16 clips to a step"),
        (5, 1, 1, 5, "Try --batch-size 2, or --grad-accum-steps 3, which keeps 5 clips to a step"),
        (1, 1, 1, 1, "Try fewer --num-frames, or a cache of smaller pictures"),
        (16, 16, 1, 1, "Try fewer --num-frames, or a cache of smaller pictures"),
    ],
)
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_full_memory_names_what_to_try(
    batch_size: int, accumulate: int, num_ranks: int, at_once: int, advice: str, error: RuntimeError
) -> None:
    with (
        pytest.raises(VidcacheError) as raised,
        oom_hint(batch_size, accumulate, num_ranks, 64),
    ):
        raise error

    assert str(raised.value).startswith(f"train: out of memory with {at_once} clips of 64 frames at once (")
    assert str(raised.value).endswith(f"expected them to fit. {advice}")


def test_memory_that_is_really_not_there_is_said() -> None:
    with (
        pytest.raises(VidcacheError, match=r"out of memory with 4 clips .*DefaultCPUAllocator"),
        oom_hint(4, 1, 1, 8),
    ):
        torch.empty(1 << 50)


def test_other_errors_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"), oom_hint(4, 1, 1, 8):
        raise RuntimeError("size mismatch")
