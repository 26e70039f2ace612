"""report.html: what it says, and how it behaves in a real browser (Debian's `chromium`, driven by Playwright)."""

import dataclasses
import importlib.resources
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from markupsafe import escape

from tests.helpers import blank_png, make_cache
from vidcache.cache.reader import CacheReader
from vidcache.checkpoint import Checkpoint
from vidcache.eval.evaluate import EvalOptions, Evaluation, describe_leaks, evaluate, predict_split
from vidcache.eval.intervals import compare
from vidcache.eval.metrics import describe_calibration
from vidcache.eval.report.files import CHANGES, RunLog, Subject, changed_clips, result_files
from vidcache.spec import Spec

MAX_BYTES = 5_000_000
EVIL = "<script>alert(1)<script>"  # a folder name has no slash
LOG = RunLog(3, blank_png(), "vidtrain c.h5 --epochs 3", "all 3 epochs are done")


def guesser(num_classes: int, seed: int = 0, *, skill: float = 3.0) -> Callable[[torch.Tensor], torch.Tensor]:
    """A model that is sometimes right about the caches of `make_cache`, whatever the clips are."""
    rng = np.random.default_rng(seed)
    labels = iter(range(10**9))

    def model(inputs: torch.Tensor) -> torch.Tensor:
        logits = rng.normal(size=(len(inputs), num_classes))
        for line in logits:
            line[next(labels) % num_classes] += skill
        return torch.from_numpy(logits).float()

    return model


class Case:
    """A cache, an evaluation of it, and the page."""

    def __init__(self, folder: Path, classes: list[str], per_class: int) -> None:
        self.path = make_cache(folder / "c.h5", dict.fromkeys(classes, per_class))
        with CacheReader(self.path) as reader:
            facts = reader.spec, reader.spec.num_frames, reader.fingerprint, reader.split_hash
            self.checkpoint = Checkpoint({}, reader.classes, *facts, {"balance": "both"}, 2, {})
            self.found = evaluate(reader, self.checkpoint, EvalOptions(), guesser(len(classes)))
            self.html = self.render(reader)

    def render(self, reader: CacheReader, found: Evaluation | None = None, **values: Any) -> str:
        subject = {name: values.pop(name) for name in ("log", "mismatch") if name in values}
        commands = "vidtrain c.h5 --epochs 3", "videval c.h5"
        made = Subject(reader, self.checkpoint, "best.pt", **{"log": LOG, "commands": commands, **subject})
        found = found or self.found
        summary = {**found.summary, **values.pop("more", {})}
        return result_files(made, found, summary, **values)["report.html"].decode()


def text_of(html: str) -> str:
    """What a page says, without tags and styles."""
    body = re.sub(r"<(style|script)\b.*?</\1>", " ", html, flags=re.S)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Case:
    names = [EVIL, "push_up", "very_long_name_of_a_class_that_somebody_really_used_once", "squat", "平板支撑"]
    return Case(tmp_path_factory.mktemp("small"), names, 40)


# --- what it says --------------------------------------------------------------------------------


def test_the_page_has_the_numbers_of_the_evaluation_and_how_to_repeat_it(small: Case) -> None:
    text, metrics, summary = text_of(small.html), small.found.metrics, small.found.summary

    spans = {name: tuple(summary[f"{name}_{end}"] for end in ("low", "high")) for name in ("balanced", "macro_f1")}
    accuracy = f"{metrics.accuracy:.1%} {metrics.accuracy_low:.1%} to {metrics.accuracy_high:.1%}"
    with CacheReader(small.path) as reader:
        hashes = f"fingerprint {reader.fingerprint}", f"test, split hash {reader.split_hash}"
    for piece in (
        *hashes,
        "best.pt, epoch 2",
        "To reproduce: vidtrain c.h5 --epochs 3 videval c.h5",
        f"{metrics.accuracy:.1%} of {metrics.num_clips} test clips correct",
        f"accuracy {accuracy}, {metrics.num_correct} of {metrics.num_clips}",
        "{:.1%} to {:.1%}".format(*spans["balanced"]),
        "{:.3f} to {:.3f}".format(*spans["macro_f1"]),
        *map(escape, metrics.top_confusions(10)),
        escape(describe_calibration(summary["calibration"])[1:]),
        "The weights are those of epoch 2 of 3. The run ended because all 3 epochs are done.",
        "No evaluated clip has a near-duplicate in another split.",
    ):
        assert piece in text


def test_the_classes_come_worst_first(small: Case) -> None:
    section = small.html[small.html.index("<h2>Per class") : small.html.index("<h2>Confusion matrix")]

    shown = [row.split("<td>")[4].split("<")[0] for row in section[section.index("<tbody>") :].split("<tr>")[1:]]
    assert [f"{accuracy:.1%}" for accuracy in sorted(r["accuracy"] for r in small.found.metrics.per_class)] == shown


def test_names_of_strangers_are_text_and_nothing_is_loaded_from_anywhere(small: Case) -> None:
    assert "<script" not in small.html
    assert "&lt;script&gt;alert(1)&lt;script&gt;" in small.html
    assert 'Content-Security-Policy" content="default-src &#39;none&#39;; img-src data:' in small.html
    for attribute in re.findall(r'(?:src|href)="([^"]*)"', small.html):
        assert attribute.startswith("data:image/png;base64,"), attribute[:80]


def test_examples_are_the_most_confident_mistakes_and_the_least_confident_correct(small: Case) -> None:
    confidence, correct = small.found.predictions.probabilities.max(1), small.found.predictions.correct
    mistakes = re.findall(r"predicted as <strong>.*?</strong> \(([\d.]+)%\)", small.html)
    hits = re.findall(r"</strong>, confidence ([\d.]+)%", small.html)

    assert [f"{100 * value:.1f}" for value in sorted(confidence[~correct], reverse=True)[:8]] == mistakes
    assert [f"{100 * value:.1f}" for value in sorted(confidence[correct])[:6]] == hits


def test_explain_adds_a_picture_to_each_mistake(small: Case) -> None:
    asked: list[int] = []

    def explain(clip: np.ndarray[Any, Any], label: int) -> np.ndarray[Any, Any]:
        asked.append(label)
        return 255 - clip

    with CacheReader(small.path) as reader:
        html = small.render(reader, explain=explain)

    assert min(8, int((~small.found.predictions.correct).sum())) == len(asked)
    assert small.html.count("<img") + len(asked) == html.count("<img")
    assert "Grad-CAM of layer4" in text_of(html)
    assert "Grad-CAM" not in text_of(small.html)


def test_a_comparison_lists_what_changed(small: Case) -> None:
    with CacheReader(small.path) as reader:
        other = predict_split(reader, small.checkpoint, guesser(5, seed=1, skill=0.5), EvalOptions())
        result = compare(small.found.predictions, other, ("best.pt", "other.pt"))
        changed = changed_clips(reader, small.found.predictions, other)
        html = small.render(reader, more={"comparison": result}, changed=changed)

    text = text_of(html)
    assert "Compared with other.pt " + result["conclusion"] in text
    assert f"{result['num_changed']} clips with another prediction" in text
    assert len(changed) == result["num_changed"] == len(re.findall(r"<td>(?:worse|better|other mistake)</td>", html))
    before, after = small.found.predictions.correct, other.correct
    changes = [row["change"] for row in changed]
    assert [int((before & ~after).sum()), int((~before & after).sum())] == [changes.count(c) for c in CHANGES[:2]]
    assert sorted(changes, key=CHANGES.index) == changes


def limits(html: str) -> str:
    return text_of(html[html.index("<h2>Limitations") :])


def test_limitations_depend_on_what_was_done(small: Case, tmp_path: Path) -> None:
    pages = {"plain": limits(small.html), "tiny": limits(Case(tmp_path, ["a", "b"], 16).html)}
    with CacheReader(small.path) as reader:
        for split in ("train", "val"):
            found = evaluate(reader, small.checkpoint, EvalOptions(split), guesser(5))
            pages[split] = limits(small.render(reader, found))
        pages["mismatch"] = limits(small.render(reader, mismatch=True))

    metrics = small.found.metrics
    width = 100 * (metrics.accuracy_high - metrics.accuracy_low)
    for name, sentence in (
        ("plain", f"With {metrics.num_clips} clips the interval of the accuracy is {width:.0f} points wide"),
        ("plain", "Test clips stay unbiased as long as nothing is chosen by them"),
        ("tiny", "2 of 2 classes have fewer than 5 clips here: too few to claim anything about them"),
        ("train", "The model was trained on these clips"),
        ("val", "The best epoch was chosen on these clips"),
        ("mismatch", "trained on another cache or split (--allow-mismatch)"),
    ):
        assert sentence in pages[name]
        assert name == "plain" or sentence not in pages["plain"]


def test_without_a_run_the_page_says_so(small: Case) -> None:
    with CacheReader(small.path) as reader:
        without = text_of(small.render(reader, log=RunLog()))
        open_end = text_of(small.render(reader, log=RunLog(3)))

    assert "The weights are those of epoch 2. Nothing is known about the run" in without
    assert "Why the run ended is not recorded, or it has not ended." in open_end


def test_leaks_and_groups_are_reported(small: Case) -> None:
    dirty = {"num_leaked": 2, "num_clean": 3, "num_clean_correct": 1, "clean_accuracy": 1 / 3, "clean_low": 0.06}
    summary = {**small.found.summary, **dirty, "clean_high": 0.79}
    with CacheReader(small.path) as reader:
        reader.columns["group"][reader.rows("test")[:4]] = reader.columns["group"][reader.rows("test")[0]]
        html = small.render(reader, found=dataclasses.replace(small.found, summary=summary))
        num_groups = len(np.unique(reader.columns["group"][reader.rows("test")]))

    text = "2 clips have a near-duplicate in another split (vidcache leaks); without them 1 of 3 correct = 33.3%"
    assert text in text_of(html)
    assert f"Some clips are not new to the model: {text}" in limits(html)
    assert f"come from {num_groups} groups. Intervals and p-values assume independent clips" in limits(html)
    assert describe_leaks({**summary, "clean_accuracy": None}).endswith(": all evaluated clips")


@pytest.mark.slow
@pytest.mark.pictures
def test_the_page_stays_small_even_with_clips_of_noise(small: Case, tmp_path: Path) -> None:
    path = make_cache(tmp_path / "n.h5", {f"class_{k}": 7 for k in range(60)}, spec=Spec(8, 96, 96))
    with CacheReader(path) as reader:
        checkpoint = dataclasses.replace(small.checkpoint, classes=reader.classes, spec=reader.spec, num_frames_used=8)
        found = evaluate(reader, checkpoint, EvalOptions(), guesser(60))
        noise = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), np.uint8)
        subject = Subject(reader, checkpoint, "x.pt", LOG, ())
        html = result_files(subject, found, found.summary, (), lambda clip, label: noise)["report.html"]  # noqa: ARG005

    assert len(html) < MAX_BYTES


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_in_dark(scheme: str) -> None:
    """WCAG 2.1, level AA: contrast of at least 4.5."""
    css = importlib.resources.files("vidcache").joinpath("page.css").read_text()
    light, dark = (dict(re.findall(r"--(\w+): #(\w+);", block)) for block in css.split(":root")[1:])
    colours = {
        name: code if len(code) == 6 else "".join(2 * digit for digit in code)
        for name, code in ({"light": light, "dark": dark}[scheme]).items()
    }

    def brightness(name: str) -> float:
        values = np.array([int(colours[name][k : k + 2], 16) / 255 for k in (0, 2, 4)])
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722)) + 0.05

    for text in ("text", "quiet", "problem", "warning", "note"):
        for page in ("page", "card"):
            low, high = sorted((brightness(text), brightness(page)))
            assert high / low >= 4.5, (text, page)


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if not chromium:
        assert "VIDCACHE_REQUIRE_CHROMIUM" not in os.environ
        pytest.skip("no chromium on PATH; VIDCACHE_REQUIRE_CHROMIUM=1 makes this fail")
    sync_playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `dev`").sync_playwright

    with sync_playwright() as playwright:
        flags = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
        yield playwright.chromium.launch(executable_path=chromium, args=flags.split())


@pytest.mark.pictures
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("num_classes", [2, 60])
def test_it_loads_without_a_complaint_and_nothing_overflows(
    browser: Any, tmp_path: Path, num_classes: int, width: int
) -> None:
    made = Case(
        tmp_path, [EVIL, *(f"a_rather_long_name_{k:03}" for k in range(1, num_classes))], 7 if num_classes > 9 else 20
    )
    (tmp_path / "report.html").write_text(made.html)
    page, complaints = browser.new_page(viewport={"width": width, "height": 844}), list[str]()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))

    page.goto((tmp_path / "report.html").as_uri())

    assert not [url for url in complaints if not url.startswith(("file:", "data:"))]
    assert width == page.evaluate("document.documentElement.scrollWidth")
    # Whatever is wider than the page is in something that scrolls by itself.
    spilled = page.evaluate(
        """() => [...document.querySelectorAll("body *")]
            .filter((e) => !e.closest(".wide") && e.getBoundingClientRect().right > innerWidth + 1)
            .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert [] == spilled
    assert page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    page.close()
