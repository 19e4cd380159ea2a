"""How long things may take before the operator says so, or acts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Settings of the installation that are about time, in seconds.

    Attributes:
        start: from a start to the guest's first answer.
        stop: how much longer than its grace period a guest may take to go.
        grace: how long a guest may take to shut down before its power is cut.
        minimum_awake: a machine is not put to sleep sooner than this after it came up.
    """

    start: float = 300.0
    stop: float = 60.0
    grace: float = 30.0
    minimum_awake: float = 30.0
