"""Checkout guard, and the fixtures that more than one file needs."""

import importlib.metadata
import os
import shutil
import signal
import site
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import hypothesis
import numpy as np
import pytest

import vidcache
from tests.helpers import blank_png, make_cache, make_raw, tiny_models

CHECKOUT = Path(__file__).parents[1]
hypothesis.settings.register_profile("vidcache", deadline=None)  # a busy machine is no defect
hypothesis.settings.load_profile("vidcache")


def pytest_configure() -> None:
    """Refuse to test another clone's code through an editable install."""
    found = Path(vidcache.__file__).resolve()
    allowed = [CHECKOUT, *(Path(folder) for folder in (*site.getsitepackages(), site.getusersitepackages()))]
    if not any(found.is_relative_to(folder.resolve()) for folder in allowed):
        pytest.exit(f"vidcache is imported from {found}, expected {CHECKOUT}: run make test here", returncode=3)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests without a GPU, unless a GPU runner asks for them."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and os.environ.get("VIDCACHE_REQUIRE_GPU") != "1":
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device; VIDCACHE_REQUIRE_GPU=1 makes this fail"))


@pytest.fixture(autouse=True)
def _restore_random_state() -> object:
    """Each test begins with the same random state and leaves none behind; one that has no torch gets none."""
    torch = sys.modules.get("torch")
    state = torch.random.get_rng_state() if torch else None
    if torch:
        torch.manual_seed(0)
    yield
    if torch and state is not None:
        torch.random.set_rng_state(state)


@pytest.fixture(autouse=True)
def _draw_blank_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Matplotlib takes 96 % of a small run: it draws only in tests that look, `@pytest.mark.pictures`.

    Without `monkeypatch`: what a test sets with it would be undone after its other fixtures, not before.
    """
    plotting = sys.modules.get("vidcache.plotting")
    if not plotting or request.node.get_closest_marker("pictures"):
        yield
        return
    with mock.patch.object(plotting, "to_png", lambda *_: blank_png()):
        yield


@pytest.fixture(autouse=True)
def _restore_signals() -> object:
    """A command that runs in this process leaves it without handlers: Ctrl-C has to end the tests in an orderly way."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def raw_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 classes, 4 and 5 videos of 24 frames."""
    return make_raw(tmp_path_factory.mktemp("data") / "raw", {"jump": 4, "run": 5})


@pytest.fixture(scope="session")
def cache_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 random clips of 3 classes, 4 frames of 16x16; row 2 failed."""
    return make_cache(tmp_path_factory.mktemp("data") / "cache.h5", {"a": 12, "b": 7, "c": 5}, failed=(2,))


@pytest.fixture
def rng() -> np.random.Generator:
    """Numbers that are the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def learnable_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 clips of 2 classes, 4 frames of 16x16, that differ in where a stripe moves: a model can learn them."""
    return make_cache(tmp_path_factory.mktemp("data") / "learnable.h5", {"a": 16, "b": 16}, learnable=True)


@pytest.fixture(scope="session")
def trained_folder(learnable_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cache.h5, best.pt and best.run of two epochs of `TinyModel`. Not to be changed: copy it."""
    from click.testing import CliRunner

    from vidcache.train.cli import main

    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(learnable_cache, folder / "cache.h5")
    options = "--weights none --epochs 2 --batch-size 8 --lr 1e-2 --device cpu".split()
    with tiny_models():
        result = CliRunner().invoke(main, [str(folder / "cache.h5"), *options, "--out", str(folder / "best.pt")])
    assert 0 == result.exit_code, result.stderr
    return folder


def pytest_report_header() -> str:
    """Say what is being tested."""
    version = importlib.metadata.version("torch")
    return f"vidcache from {Path(vidcache.__file__).parent}, torch {version}, Python {sys.version.split()[0]}"
