"""One loopback address per machine.

All of 127.0.0.0/8 can be bound without configuring anything, so each machine has an address of its
own on which its guest's ports are forwarded under their own numbers: virt-api dials exactly
`status.interfaces[0].ipAddress` and the port that was asked for. Addresses are handed out in turn,
so that one which was just given up is not reused at once.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any

__all__ = ["Addresses", "AddressesError", "can_bind", "pod_ports", "vmi_ports"]

_DEFAULT_PORTS = (22,)


class AddressesError(Exception):
    """No address can be given out, or a port cannot be bound by us at all."""


def can_bind(address: str, ports: Collection[int]) -> bool:
    """Whether all of these TCP ports are free on `address`.

    Raises:
        AddressesError: a port may not be bound by this user, on any address.
    """
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As QEMU does, or ports of machines that ended a moment ago would look taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
                probe.listen(1)
            except PermissionError as error:
                raise AddressesError(
                    f"port {port} of the guest cannot be forwarded: only privileged users may listen on ports "
                    f"below net.ipv4.ip_unprivileged_port_start. Let the guest listen on a high port (such as "
                    f"{2000 + port}), or run: sudo sysctl net.ipv4.ip_unprivileged_port_start={port}"
                ) from error
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                    return False
                raise
    return True


class Addresses:
    """Who has which address. An address is kept as long as its owner lives."""

    def __init__(
        self,
        network: IPv4Network,
        *,
        free: Callable[[str, Collection[int]], bool] = can_bind,
    ) -> None:
        self._network = network
        self._free = free
        self._by_owner: dict[str, str] = {}
        self._taken: set[str] = set()
        self._last = int(network.network_address)

    def of(self, owner: str) -> str | None:
        """The address that `owner` has."""
        return self._by_owner.get(owner)

    def claim(self, owner: str, ports: Collection[int]) -> str:
        """The address of `owner`: the one it has, else the next on which all `ports` are free.

        Raises:
            AddressesError: none is left, or a port may not be bound by us.
        """
        held = self._by_owner.get(owner)
        if held is not None:
            return held
        for _ in range(self._network.num_addresses):
            address = self._next()
            if address is not None and address not in self._taken and self._free(address, ports):
                self.restore(owner, address)
                return address
        raise AddressesError(f"no address of {self._network} is free: {len(self._taken)} are taken")

    def restore(self, owner: str, address: str) -> None:
        """Note down what `owner` has already (after a restart)."""
        held = self._by_owner.get(owner)
        if held == address:
            return
        if held is not None:
            self._taken.discard(held)
        self._by_owner[owner] = address
        self._taken.add(address)
        number = int(IPv4Address(address))
        if IPv4Address(address) in self._network:
            self._last = max(self._last, number)

    def release(self, owner: str) -> None:
        """The owner is gone."""
        address = self._by_owner.pop(owner, None)
        if address is not None:
            self._taken.discard(address)

    def _next(self) -> str | None:
        self._last += 1
        if self._last > int(self._network.broadcast_address):
            self._last = int(self._network.network_address) + 1
        # .0 and .255 are as good as others on loopback, but look like mistakes to people.
        return None if self._last % 256 in (0, 255) else str(IPv4Address(self._last))


def pod_ports(pod: Mapping[str, Any]) -> tuple[int, ...]:
    """The TCP ports to forward, as its launcher pod tells them."""
    containers = pod["spec"]["containers"]
    compute: Mapping[str, Any] = next(
        (item for item in containers if item["name"] == "compute"), {}
    )
    ports = [
        port["containerPort"]
        for port in compute.get("ports") or []
        if port.get("protocol", "TCP") == "TCP"
    ]
    return _ports(ports, compute.get("readinessProbe"))


def vmi_ports(vmi: Mapping[str, Any]) -> tuple[int, ...]:
    """The TCP ports to forward: those of the interfaces and the readiness probe, else SSH's."""
    devices = vmi["spec"]["domain"].get("devices") or {}
    ports = [
        port["port"]
        for interface in devices.get("interfaces") or []
        for port in interface.get("ports") or []
        if (port.get("protocol") or "TCP") == "TCP"
    ]
    return _ports(ports, vmi["spec"].get("readinessProbe"))


def _ports(ports: list[int], probe: Mapping[str, Any] | None) -> tuple[int, ...]:
    found = list(ports)
    for handler in ("tcpSocket", "httpGet"):
        target = (probe or {}).get(handler)
        if target and isinstance(target.get("port"), int):
            found.append(target["port"])
    return tuple(sorted(set(found))) or _DEFAULT_PORTS
