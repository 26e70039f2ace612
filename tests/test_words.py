"""Words that must not come back: what users, contributors and readers see is plain, in the field's terms."""

import ast
import re
from pathlib import Path

import pytest

from tests.helpers import skip_without_checkout

CHECKOUT = Path(__file__).parents[1]
FOLDERS = ("common", "cache", "preprocess", "train", "eval", "docs")
SUFFIXES = {".py", ".html", ".md", ".js"}
FILES = [
    *sorted(
        path
        for folder in FOLDERS
        for path in (CHECKOUT / folder).rglob("*")
        if path.suffix in SUFFIXES and "__pycache__" not in path.parts
    ),
    CHECKOUT / "README.md",
    CHECKOUT / "CONTRIBUTING.md",
]
# In code, messages, help texts, pages and docs. Each with what to say.
NOT_TO_BE_SAID = {
    r"\bsureness\b": "confidence",
    r"\b(is|are|was|were) taken for\b": "predicted as",
    r"\bleak guard\b": "duplicate check",
    r"\bso many\b": "the number: at most N, N parts",
    r"\bwhat is odd\b": "problems",
    r"\bmajority (hit|right)\b": "majority-class baseline",
    r"\bsays nothing finite\b": "NaN or inf outputs",
    r"\bas it (says|said) it is\b": "calibration",
    r"\bthe least confident hits\b": "least confident correct predictions",
    r"\bmeans nothing without\b": "requires",
    r"\bReport this\b": "(this is a bug; please report it)",
    r"\bis asked what it was taught\b": "test results are inflated",
}
# Of docstrings, help texts and messages: phrases that lack their noun.
NOT_TO_BEGIN_WITH = re.compile(r"Of (the|a|an|all|everything|every|this|each|Adam|some)\b")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_words_that_must_not_come_back(path: Path) -> None:
    skip_without_checkout()
    text = path.read_text()

    for pattern, instead in NOT_TO_BE_SAID.items():
        match = re.search(pattern, text, re.IGNORECASE)
        assert not match, f"{match[0]!r} on line {text[: match.start()].count(chr(10)) + 1}: say {instead}"


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".py"], ids=lambda path: path.name)
def test_no_sentence_lacks_its_noun(path: Path) -> None:
    skip_without_checkout()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not NOT_TO_BEGIN_WITH.match(node.value), f"line {node.lineno}: {node.value[:60]!r}"


def test_no_message_is_forced_into_expected() -> None:
    """A message says what is wrong and what to do. "..., expected ..." is for a value beside its range, and for the rest
    of the world there is a remedy behind it; so it is rare."""
    skip_without_checkout()
    messages = [
        message
        for path in FILES
        if path.suffix == ".py" and "docs" not in path.parts
        for message in re.findall(r'"[^"\n]*, expected [^"\n]*"', path.read_text())
    ]

    assert len(messages) <= 45
