"""What has to be asked of the API server before something drastic is decided.

Caches are filled by one watch per kind, and these run at different speeds: a VMI can be seen before its VM, and a
disk whose labels somebody took off vanishes from a cache that selects by them.
"""

from __future__ import annotations

from typing import Final

from machine_operator.api.phases import DesiredState
from machine_operator.lifecycle.clocks import after
from machine_operator.lifecycle.observation import Question
from machine_operator.lifecycle.situation import Situation

__all__ = ["UNBOUND_PATIENCE", "questions_of"]

UNBOUND_PATIENCE: Final = 60.0
"""Seconds for which a disk may be without a volume before it is asked why: cloud provisioners take half of that, and a
question per machine is the last thing that a busy API server needs."""


def questions_of(at: Situation) -> frozenset[Question]:
    """Everything that has to be known for certain."""
    seen, asked = at.seen, set[Question]()
    if seen.fault is not None:
        return frozenset()
    vm = seen.virtual_machine
    if vm is None and seen.instance is not None and not seen.instance.deleting:
        asked.add(Question.VIRTUAL_MACHINE)
    if at.goal.state is DesiredState.DESTROYED:
        return frozenset(asked)
    if at.storage_lost or (seen.home is None and at.adopts is not None):
        asked.add(Question.HOME)
    if at.goal.state is not DesiredState.RUNNING:
        return frozenset(asked)
    if vm is not None and vm.on and vm.rests and seen.instance is None:
        # A start that KubeVirt planned after a crash may not have reached our cache, while the end of the VMI has.
        asked |= {Question.VIRTUAL_MACHINE, Question.INSTANCE}
    if _waits_long_for_its_disk(at):
        asked.add(Question.WHY_UNBOUND)
    return frozenset(asked)


def _waits_long_for_its_disk(at: Situation) -> bool:
    home = at.seen.home
    if home is None or home.bound or home.created_at is None or at.answers:
        return False
    return after(home.created_at, UNBOUND_PATIENCE) <= at.now
