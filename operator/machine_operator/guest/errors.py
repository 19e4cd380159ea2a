"""What can go wrong on the way into a guest.

GuestError
├── GuestUnreachable   no connection now: trying again may help
├── GuestRefused       the guest is not who it should be, or lets us not in: trying again does not help
└── GuestLost          the connection broke while something was under way, whose fate is not known
"""

from __future__ import annotations

__all__ = ["GuestError", "GuestLost", "GuestRefused", "GuestUnreachable"]


class GuestError(Exception):
    """Something that was wanted from a guest did not happen; the message says what and why."""


class GuestUnreachable(GuestError):
    """There is no connection to the guest now."""


class GuestRefused(GuestError):
    """The guest's host certificate is not right, or it does not accept ours."""


class GuestLost(GuestError):
    """The connection broke."""
