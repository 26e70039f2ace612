"""Pictures with the names of strangers in them: any script, any mark-up."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from vidcache import plotting
from vidcache.eval.metrics import compute_metrics
from vidcache.eval.report.plots import confusion_figure, per_class_figure
from vidcache.plotting import Filmstrip, draw_filmstrips
from vidcache.preprocess.analysis.report import draw_bars

pytestmark = pytest.mark.pictures
NAMES = ("日本語", r"$\no{such$ mark_up^", "plain")
METRICS = compute_metrics(np.arange(3), np.eye(3), NAMES)
FRAMES = np.zeros((2, 8, 8, 3), np.uint8)
DRAWN: tuple[Callable[[Path], object], ...] = (
    lambda path: plotting.write_png(confusion_figure(METRICS, " ".join(NAMES)), path, 100),
    lambda path: plotting.write_png(per_class_figure(METRICS.per_class, " ".join(NAMES)), path, 100),
    lambda path: draw_filmstrips([Filmstrip(name, ((name, FRAMES),)) for name in NAMES], path),
    lambda path: path.write_bytes(draw_bars(NAMES, {"clips": np.arange(3)}, "clips")),
)


@pytest.mark.parametrize("draw", DRAWN, ids=["confusion", "per class", "filmstrip", "bars"])
def test_any_name_is_drawn_without_a_word(draw: Callable[[Path], object], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path / "drawn.png")

    assert imread(tmp_path / "drawn.png").std() > 0.01


def test_what_matplotlib_lacks_comes_from_a_font_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    # Comes with matplotlib and has what no other font has, in the range that is for private use.
    for fallback in ((), ("no such font",), ("STIXNonUnicode",)):
        monkeypatch.setattr(plotting, "FALLBACK_FONTS", fallback)
        plotting._fonts.cache_clear()
        draw_filmstrips([Filmstrip("\ue00a", (("", FRAMES),))], tmp_path / "drawn.png")
        drawn.append((tmp_path / "drawn.png").read_bytes())
    plotting._fonts.cache_clear()

    assert drawn[0] == drawn[1] != drawn[2]


def test_a_filmstrip_has_its_frames_in_their_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("vidcache.plotting.write_png", lambda figure, *_: drawn.append(figure))
    frames = np.random.default_rng(0).integers(0, 250, (2, 3, 8, 10, 3), np.uint8)  # (lines, F, H, W, 3)
    strips = [Filmstrip("a", (("x", frames[0]), ("y", frames[1]))), Filmstrip("b", (("z", frames[1]),))]

    draw_filmstrips(strips, tmp_path)

    first, second = drawn[0].axes
    assert ["a", "b"] == [first.get_title("left"), second.get_title("left")]
    assert ["x", "y"] == [label.get_text() for label in first.get_yticklabels()]
    picture = np.full((2 * 8 + 1, 3 * 10 + 2, 3), 255)
    for line, frame in np.ndindex(2, 3):
        picture[9 * line : 9 * line + 8, 11 * frame : 11 * frame + 10] = frames[line, frame]
    assert np.array_equal(picture, first.images[0].get_array())
    assert np.array_equal(frames[1, 2], np.asarray(second.images[0].get_array())[:, 22:])
