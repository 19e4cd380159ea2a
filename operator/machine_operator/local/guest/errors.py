"""What can go wrong while a guest image is built or looked up.

GuestError            anything below; the message says what to do
├── MissingTools      a program of the host is missing: install it
├── NoSpace           the cache's file system is too full: free some, or move the cache
├── PackagesError     the machine's apt cannot resolve or download Debian's packages
└── BrokenImage       an image in the store cannot be used as it is: build it again
"""

from __future__ import annotations

__all__ = ["BrokenImage", "GuestError", "MissingTools", "NoSpace", "PackagesError"]


class GuestError(Exception):
    """A guest image cannot be built or used; the message is a sentence for the user."""


class MissingTools(GuestError):
    """Programs that the build needs are not installed.

    Attributes:
        tools: the programs, sorted.
        command: the exact command that installs them.
    """

    def __init__(self, tools: list[str], *, command: str) -> None:
        self.tools = tools
        self.command = command
        super().__init__(
            f"the guest image cannot be built without {', '.join(tools)}; "
            f"install what is missing with: {command}"
        )


class NoSpace(GuestError):
    """The file system of the cache has too little room for a build."""


class PackagesError(GuestError):
    """apt could not resolve or download the guest's packages."""


class BrokenImage(GuestError):
    """An image of the store is unreadable or incomplete."""
