"""What the hollow node is told by whoever starts it: one JSON file."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from machine_operator.kube.connection import Connection

__all__ = ["ConfigError", "Identities", "Identity", "NodeConfig"]

_STRICT = ConfigDict(extra="forbid")


class ConfigError(Exception):
    """The configuration file cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Identity:
    """A client certificate and its key (PEM files)."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True, config=_STRICT)
class Identities:
    """The three users that the node acts as, each with its own rights."""

    kubelet: Identity
    virt_handler: Identity
    provisioner: Identity


@dataclass(frozen=True, slots=True, config=_STRICT)
class NodeConfig:
    """One hollow node.

    Attributes:
        name: the Node's name, which the kubelet certificate must carry.
        cluster: the local cluster's name, for labels and logs.
        server: base URL of kube-apiserver.
        ca: PEM file of the CA that signed the API server's certificate.
        identities: client certificates.
        data: directory of guests and volumes, which this node alone uses.
        images: directory of the image store.
        qemu: False turns VMIs Running without a guest.
        cpu: CPUs to offer to the scheduler.
        memory_mib: memory to offer to the scheduler, in MiB.
        network: loopback network from which each machine gets an address.
    """

    name: str
    cluster: str
    server: str
    ca: Path
    identities: Identities
    data: Path
    images: Path
    qemu: bool
    cpu: int
    memory_mib: int
    network: IPv4Network

    @classmethod
    def load(cls, path: Path) -> NodeConfig:
        """Read the file.

        Raises:
            ConfigError: it is not there, or something in it is wrong.
        """
        try:
            config = _ADAPTER.validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except ValidationError as error:
            raise ConfigError(f"{path} is not a hollow node's configuration: {error}") from error
        if not config.network.is_loopback:
            raise ConfigError(f"{path}: network {config.network} must lie within 127.0.0.0/8")
        return config

    def connection(self, identity: Identity) -> Connection:
        """A connection to the API server as `identity`."""
        return Connection.from_certificate(
            self.server.rstrip("/"),
            ca=self.ca,
            certificate=identity.certificate,
            key=identity.key,
        )


_ADAPTER = TypeAdapter(NodeConfig)
