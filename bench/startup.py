"""With a warm cache: how long `local up` and `local down` take, as commands, by step."""

from __future__ import annotations

from pathlib import Path

from clusters import Cluster, progress
from figures import Report, measured

__all__ = ["measure"]

_UP_LIMIT = 20.0
_DOWN_LIMIT = 5.0
_OUTSIDE = "command, certificates, supervisor"
"""What is left of `up` beside the steps that the supervisor tells."""

Steps = dict[str, float]


def measure(report: Report, directory: Path, *, repeats: int) -> None:
    """Up on fresh data, down, up again on the same data, down; `repeats` times."""
    ups: dict[str, list[Steps]] = {"fresh": [], "kept": []}
    downs: list[float] = []
    for number in range(1, repeats + 1):
        with Cluster(directory) as cluster:
            for data, runs in ups.items():
                runs.append(_up(cluster))
                downs.append(cluster.down())
                progress(
                    f"start {number}/{repeats}, {data} data: "
                    f"up {runs[-1]['in all']:.1f} s, down {downs[-1]:.1f} s"
                )
        report.note_load(f"after start {number}")
    report.raw["start"] = {"up": ups, "down": downs}
    for data, runs in ups.items():
        name = f"local up, {data} data"
        report.add(measured(name, [run["in all"] for run in runs], "s", limit=_UP_LIMIT))
        steps = [
            measured(f"  {step}", [run[step] for run in runs], "s")
            for step in runs[0]
            if step != "in all"
        ]
        report.add(*sorted(steps, key=lambda figure: -figure.value))
    report.add(measured("local down, no machines", downs, "s", limit=_DOWN_LIMIT))


def _up(cluster: Cluster) -> Steps:
    whole = cluster.up()
    steps: Steps = cluster.status()["steps"]
    return {**steps, _OUTSIDE: whole - sum(steps.values()), "in all": whole}
