"""The programs of ours that run in the guest: POSIX sh, from `scripts/`.

The seed installs them at each boot. A gateway that is newer than the seed brings its own along: the path has a digest
of the content, so neither ever runs what the other one meant.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

__all__ = ["SCRIPTS_DIRECTORY", "GuestScript", "guest_script", "guest_scripts"]

SCRIPTS_DIRECTORY = "/usr/local/lib/machine"


@dataclass(frozen=True, slots=True)
class GuestScript:
    """One program.

    Attributes:
        name: as in `scripts/NAME.sh`.
        path: where it is in the guest.
        content: of the file.
    """

    name: str
    path: str
    content: str


@cache
def guest_scripts() -> tuple[GuestScript, ...]:
    """All of them, by name."""
    directory = resources.files(__package__) / "scripts"
    found = []
    for file in sorted(directory.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".sh"):
            content, name = file.read_text(), file.name.removesuffix(".sh")
            digest = hashlib.sha256(content.encode()).hexdigest()[:12]
            found.append(GuestScript(name, f"{SCRIPTS_DIRECTORY}/{name}-{digest}", content))
    return tuple(found)


def guest_script(name: str) -> GuestScript:
    """One of them."""
    return next(script for script in guest_scripts() if script.name == name)
