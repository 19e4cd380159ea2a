"""The names under which a Machine is known to Kubernetes: group, kind, labels, annotations."""

from typing import Final

GROUP: Final = "machines.dedaluslabs.ai"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

KIND: Final = "Machine"
LIST_KIND: Final = "MachineList"
PLURAL: Final = "machines"
SINGULAR: Final = "machine"
# cluster-api owns "machines", "machine" and "ma" in many clusters; "dm" is free.
SHORT_NAMES: Final = ("dm",)

FINALIZER: Final = f"{GROUP}/machine"
"""Held by the controller until the VM is gone and the home disk is dealt with."""

UID_LABEL: Final = f"{GROUP}/uid"
"""On every child object: the UID of its Machine, by which informers find the work-queue key."""

NAME_LABEL: Final = f"{GROUP}/machine"
"""On every child object: the name of its Machine, for people and selectors."""

MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "machine-operator"
"""The value of MANAGED_BY_LABEL on every child object."""

PAUSED_ANNOTATION: Final = f"{GROUP}/paused"
"""On a Machine: while its value is "true" the controller looks, but changes nothing."""

ADOPT_ANNOTATION: Final = f"{GROUP}/adopt-home"
"""On a new Machine: the name of a retained PersistentVolumeClaim of a Machine of the same name, to be its home disk."""
