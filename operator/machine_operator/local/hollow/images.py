"""Image pulls, as kubelet tells them: found, or ErrImagePull, then ImagePullBackOff, and tried again.

There is no registry here. A container disk's image is looked up in the image store, and one that is
not there is a registry's miss. The virt-launcher image itself is never run, so it is always there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine_operator.local.guest.errors import BrokenImage
from machine_operator.local.guest.store import Image, ImageStore

__all__ = ["Images", "Pull", "is_launcher", "pod_images"]

_FIRST_PAUSE = 10.0
_LONGEST_PAUSE = 300.0

_SHOW_ERROR = 3.0
"""Seconds for which ErrImagePull is shown before it turns into ImagePullBackOff."""

_NOWHERE = ".invalid"
"""Registries below this top-level domain (RFC 2606) never have anything, with or without QEMU."""


@dataclass(frozen=True, slots=True)
class Pull:
    """An image that is not there.

    Attributes:
        image: its name.
        reason: `ErrImagePull` or `ImagePullBackOff`, as in a container status.
        message: the sentence beside it.
        again: seconds after which this is to be looked at again.
    """

    image: str
    reason: str
    message: str
    again: float


@dataclass(slots=True)
class _Miss:
    pause: float
    at: float
    why: str


class Images:
    """Looks images up for pods, and keeps their back-offs.

    Args:
        root: the image store's directory.
        real: False where no guest is ever started: then every image is there, but for those of
            impossible registries.
        clock: monotonic seconds.
    """

    def __init__(
        self, root: Path, *, real: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = root
        self._store = ImageStore(root)
        self._real = real
        self._clock = clock
        self._misses: dict[tuple[str, str], _Miss] = {}

    def find(self, name: str) -> Image | None:
        """The image of that name.

        Raises:
            BrokenImage: it is there but cannot be used.
        """
        return self._store.find(name)

    def pull(self, pod_uid: str, name: str) -> Pull | None:
        """Pull an image for a pod: None once it is there, else why it is not."""
        key, moment = (pod_uid, name), self._clock()
        miss = self._misses.get(key)
        if miss is not None and moment < miss.at + miss.pause:
            return self._waiting(name, miss, since=moment - miss.at)
        why = self._why_missing(name)
        if why is None:
            self._misses.pop(key, None)
            return None
        pause = _FIRST_PAUSE if miss is None else min(miss.pause * 2, _LONGEST_PAUSE)
        self._misses[key] = _Miss(pause=pause, at=moment, why=why)
        return Pull(name, "ErrImagePull", why, again=_SHOW_ERROR)

    def forget(self, pod_uid: str) -> None:
        """The pod is gone."""
        for key in [key for key in self._misses if key[0] == pod_uid]:
            del self._misses[key]

    def _waiting(self, name: str, miss: _Miss, *, since: float) -> Pull:
        if since < _SHOW_ERROR:
            return Pull(name, "ErrImagePull", miss.why, again=_SHOW_ERROR - since)
        message = f'Back-off pulling image "{name}": ErrImagePull: {miss.why}'
        return Pull(name, "ImagePullBackOff", message, again=miss.pause - since)

    def _why_missing(self, name: str) -> str | None:
        if name.split("/", maxsplit=1)[0].split(":", maxsplit=1)[0].endswith(_NOWHERE):
            return f'failed to pull image "{name}": {name}: not found'
        if not self._real:
            return None
        try:
            found = self._store.find(name)
        except BrokenImage as error:
            return f'failed to pull image "{name}": {error}'
        if found is not None:
            return None
        return f'failed to pull image "{name}": {name}: not found in the image store {self._root}'


def is_launcher(pod: Mapping[str, Any]) -> bool:
    """Whether this is a VMI's virt-launcher pod."""
    return (pod["metadata"].get("labels") or {}).get("kubevirt.io") == "virt-launcher"


def pod_images(pod: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(container, image) of everything in a pod that has to be pulled.

    In a launcher pod these are the containers `volume…`, one per container disk, and their init
    containers; the others run virt-launcher's own image.
    """
    spec = pod["spec"]
    launcher = is_launcher(pod)
    for container in (*(spec.get("initContainers") or []), *spec["containers"]):
        if not launcher or container["name"].startswith("volume"):
            yield container["name"], container["image"]
