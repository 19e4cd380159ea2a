"""The Machines that there are, as they were last told: by the watch, or by the answer to a write of our own.

Versions grow over all objects of a kind, so the newest word is the one with the highest resourceVersion, whichever
way it came, and a late word of a Machine is older than its successor of the same name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import Any

from machine_operator.api.machine import Machine, read_machine_anyway
from machine_operator.api.phases import Phase
from machine_operator.controller.reconciler import Known
from machine_operator.kube.informer import Key

__all__ = ["News", "Roster"]


class News(Enum):
    """What a word about a Machine changed."""

    NOTHING = auto()
    """It is old, or says what was known."""
    STATUS = auto()
    """Only the controller's own part of the status: mostly our own write coming back."""
    ASKED = auto()
    """What people or gateways say about it; or it is new."""
    GONE = auto()
    """It is about a Machine that is gone."""


class Roster:
    """Key -> Machine."""

    def __init__(self) -> None:
        self._known: dict[Key, Known] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Key]:
        return iter(list(self._known))

    def get(self, key: Key) -> Known | None:
        """The newest word, or None."""
        return self._known.get(key)

    def of(self, machine: Machine) -> Known | None:
        """The newest word about this very Machine; None where it is gone or has a successor."""
        known = self._known.get(Key(machine.metadata.namespace, machine.metadata.name))
        same = known is not None and known.machine.metadata.uid == machine.metadata.uid
        return known if same else None

    def learn(self, obj: Mapping[str, Any]) -> News:
        """Take a word in."""
        meta = obj["metadata"]
        key, known = Key(meta["namespace"], meta["name"]), None
        known = self._known.get(key)
        if known is not None and int(meta["resourceVersion"]) <= int(
            known.machine.metadata.resourceVersion
        ):
            return News.NOTHING
        machine, fault = read_machine_anyway(obj)
        if machine.metadata.deletionTimestamp is not None and not machine.metadata.finalizers:
            # The answer to our last write, which the event can have overtaken.
            return News.GONE
        self._known[key] = Known(machine, fault)
        if known is None or known.machine.metadata.uid != machine.metadata.uid:
            return News.ASKED
        if known.fault != fault or _asked(known.machine) != _asked(machine):
            return News.ASKED
        return News.NOTHING if known.machine.status == machine.status else News.STATUS

    def drop(self, key: Key, *, uid: str) -> Machine | None:
        """Forget the Machine of this uid; returns it, or None where it was not known."""
        known = self._known.get(key)
        if known is None or known.machine.metadata.uid != uid:
            return None
        return self._known.pop(key).machine

    def by_phase(self) -> Mapping[Phase, int]:
        """How many there are of each phase."""
        return Counter(k.machine.status.phase or Phase.ACCEPTED for k in self._known.values())

    def not_ready(self) -> Mapping[str, int]:
        """How many are not Ready, by reason."""
        return Counter(
            str(known.machine.status.reason or "Unknown")
            for known in self._known.values()
            if not any(
                condition.type == "Ready" and condition.status == "True"
                for condition in known.machine.status.conditions
            )
        )


def _asked(machine: Machine) -> tuple[Any, ...]:
    meta, status = machine.metadata, machine.status
    return (
        meta.generation,
        meta.deletionTimestamp,
        meta.annotations,
        meta.labels,
        machine.spec,
        status.power_request,
        status.activity,
    )
