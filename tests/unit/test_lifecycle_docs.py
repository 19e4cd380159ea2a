"""docs/lifecycle.md is what the tables say, and the ways that its exploration finds are those of a life."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from machine_operator.api.phases import REASONS, Phase
from machine_operator.lifecycle.table import TABLE

ROOT = Path(__file__).resolve().parents[2]
NAME = "lifecycle_docs"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_loader(NAME, SourceFileLoader(NAME, str(ROOT / "scripts" / "lifecycle-docs")))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[NAME] = module_from_spec(spec)
    # Without a file ending, the compiled script would be left beside it.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def test_the_page_is_what_the_script_prints(script: ModuleType) -> None:
    page = (ROOT / "docs" / "lifecycle.md").read_text()
    assert page == script.page(), "run `make docs`"


def test_the_page_tells_every_row_and_every_reason() -> None:
    page = (ROOT / "docs" / "lifecycle.md").read_text()
    assert all(f"| {row.goal} | {row.when} | `{row.phase}` |" in page for row in TABLE)
    assert all(f"| `{reason}` |" in page for reason in REASONS)


def test_every_phase_is_reached_and_only_the_last_has_no_way_out(script: ModuleType) -> None:
    edges = script.explore()
    assert {after for _, after in edges} == set(Phase)
    assert {before for before, _ in edges} == {None, *Phase} - {Phase.DESTROYED}
    assert {after for before, after in edges if before is Phase.DESTROYING} == {Phase.DESTROYED}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, Phase.ACCEPTED),
        (Phase.ACCEPTED, Phase.PLACEMENT_PENDING),
        (Phase.PLACEMENT_PENDING, Phase.STARTING),
        (Phase.STARTING, Phase.RUNNING),
        (Phase.RUNNING, Phase.STOPPING),
        (Phase.STOPPING, Phase.SLEEPING),
        (Phase.SLEEPING, Phase.STARTING),
        *[
            (phase, Phase.FAILED)
            for phase in Phase
            if phase.value not in ("destroying", "destroyed", "failed")
        ],
    ],
)
def test_the_ways_of_a_life_are_found(
    script: ModuleType, before: Phase | None, after: Phase
) -> None:
    assert script.explore()[before, after]


def test_nothing_that_lived_is_new_again(script: ModuleType) -> None:
    assert [before for before, after in script.explore() if after is Phase.ACCEPTED] == [None]
