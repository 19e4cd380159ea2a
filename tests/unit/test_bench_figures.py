"""The figures of benchmarks: what must hold, and percentiles."""

from __future__ import annotations

import pytest

from bench.figures import Figure, measured, percentile, single


@pytest.mark.parametrize(
    ("figure", "must", "holds"),
    [
        (single("explains", 3.0, "s"), None, None),
        (single("at the limit", 3.0, "s", limit=3.0), "<= 3", True),
        (single("beyond it", 3.01, "s", limit=3.0), "<= 3", False),
        (single("least", 0.93, "x", least=0.93), ">= 0.93", True),
        (single("too little", 0.92, "x", least=0.93), ">= 0.93", False),
        (single("exact", 0, "", limit=0, least=0), "== 0", True),
        (single("not exact", 1, "", limit=0, least=0), "== 0", False),
        (single("between", 2, "", limit=3, least=1), "<= 3, >= 1", True),
        (single("below both", 0, "", limit=3, least=1), "<= 3, >= 1", False),
    ],
)
def test_what_a_figure_must_be(figure: Figure, must: str | None, holds: bool | None) -> None:
    assert (figure.must, figure.holds) == (must, holds)
    assert figure.to_json()["must"] == must


def test_the_median_decides() -> None:
    assert measured("times", [1.0, 9.0, 2.0], "s", limit=2.0).holds is True
    assert measured("rates", [1.0, 9.0, 2.0], "s", least=2.5).holds is False


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (1, 1.0), (50, 50.0), (99, 99.0), (100, 100.0)]
)
def test_percentiles_are_values_that_were_measured(percent: float, expected: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], percent) == expected


def test_a_percentile_of_few() -> None:
    assert percentile([7.0], 99) == 7.0
    assert percentile([1.0, 2.0], 50) == 1.0
    assert percentile([1.0, 2.0, 3.0], 99) == 3.0
