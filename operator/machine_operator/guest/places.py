"""Where things are in a guest."""

from __future__ import annotations

from dataclasses import dataclass

from machine_operator.kubevirt.scripts import SCRIPTS_DIRECTORY

__all__ = ["Places"]


@dataclass(frozen=True, slots=True)
class Places:
    """Directories of a guest: absolute paths without a slash at the end.

    Attributes:
        home: where commands begin; on the home disk, so it outlives a sleep.
        spool: what is known about executions; gone with each boot.
        scripts: our own programs.
        shell: what runs the runner, with arguments if need be.
    """

    home: str = "/root"
    spool: str = "/var/lib/machine-executions"
    scripts: str = SCRIPTS_DIRECTORY
    shell: str = "/bin/sh"

    @property
    def artifacts(self) -> str:
        """Where each execution has a directory for what it wants to hand over."""
        return f"{self.home}/.machine/artifacts"
