"""Ports of a local cluster: chosen freely below the ephemeral range, written down, and kept where still free.

Ports at 32768 and above are handed out by the kernel to outgoing connections, so a listener there could find its
port taken at any restart. Below, only another server can stand in the way.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable, Mapping

__all__ = ["choose_ports", "port_is_free"]

_RANGE = (20000, 32000)
_TRIES = 2000


def port_is_free(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        # As Go's listeners do: a connection in TIME_WAIT does not count as busy.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def choose_ports(
    names: Iterable[str], *, previous: Mapping[str, int] | None = None
) -> dict[str, int]:
    """One free port for each name; the previous one where nobody else has taken it.

    Raises:
        OSError: no free port was found (hundreds of them are in use).
    """
    chosen: dict[str, int] = {}
    for name in names:
        before = (previous or {}).get(name)
        if before is not None and before not in chosen.values() and port_is_free(before):
            chosen[name] = before
            continue
        chosen[name] = _random_port(taken=set(chosen.values()), wanted_for=name)
    return chosen


def _random_port(*, taken: set[int], wanted_for: str) -> int:
    for _ in range(_TRIES):
        port = random.randrange(*_RANGE)
        if port not in taken and port_is_free(port):
            return port
    raise OSError(f"no free port for {wanted_for} between {_RANGE[0]} and {_RANGE[1]} on 127.0.0.1")
