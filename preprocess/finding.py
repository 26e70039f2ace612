"""What an analysis has to say: one finding, in words."""

import dataclasses
import enum
import itertools
from collections.abc import Iterable

MAX_NAMES = 3


class Severity(enum.StrEnum):
    """How bad a finding is, worst first."""

    PROBLEM = "problem"  # results will be wrong, or something cannot be learnt
    WARNING = "warning"  # results may be worse, or mean less, than they seem
    NOTE = "note"  # good to know


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is odd.

    Attributes:
        severity: How bad.
        title: What, in a few words.
        detail: The numbers that show it, and a few names; printable.
        advice: What to do, or to think about.
    """

    severity: Severity
    title: str
    detail: str
    advice: str


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort by severity; equal ones stay in their order."""
    order = list(Severity)
    return tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))


def some_names(names: Iterable[str], total: int) -> str:
    """Join names, at most three of them.

    Args:
        names: The first three, or more.
        total: How many there are.

    >>> some_names(["a", "b", "c", "d", "e"], 5)
    'a, b, c and 2 more'
    """
    shown = list(itertools.islice(names, MAX_NAMES))
    more = f" and {total - len(shown):,} more" if total > len(shown) else ""
    return ", ".join(shown) + more


def share(count: int, total: int) -> str:
    """Return a count and what part it is.

    >>> share(3, 60), share(1, 100000)
    ('3 of 60 (5%)', '1 of 100,000 (under 1%)')
    """
    percent = f"{count / total:.0%}" if 200 * count >= total or not count else "under 1%"
    return f"{count:,} of {total:,} ({percent})"


def amount(value: float) -> str:
    """Return a number with about three digits, never as a power of ten.

    >>> amount(0.28125), amount(8.8345), amount(768000.0)
    ('0.281', '8.83', '768,000')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
