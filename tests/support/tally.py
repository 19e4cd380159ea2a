"""Counts what the suites ran (schedules, steps, crash points), to be told at the end of a run."""

from __future__ import annotations

from collections import Counter

__all__ = ["count", "totals"]

_counts: Counter[str] = Counter()


def count(kind: str, n: int = 1) -> None:
    """So many more of a kind, named in the plural, such as "crash points"."""
    _counts[kind] += n


def totals() -> dict[str, int]:
    """All counts of this run, by kind."""
    return dict(sorted(_counts.items()))
