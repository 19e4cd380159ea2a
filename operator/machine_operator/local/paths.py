"""Where a local cluster keeps its things.

The cache (binaries, images) is shared by all clusters of a user and may be thrown away at any time; the data
directory belongs to one cluster. Both follow the XDG base directory specification.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ClusterPaths", "cache_directory", "cluster_paths"]

_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")


@dataclass(frozen=True, slots=True)
class ClusterPaths:
    """The data directory of one cluster and what lies in it."""

    name: str
    data: Path

    @property
    def pki(self) -> Path:
        """Certificates and keys (mode 0700)."""
        return self.data / "pki"

    @property
    def logs(self) -> Path:
        """One log file per component."""
        return self.data / "logs"

    @property
    def kubeconfigs(self) -> Path:
        """One kubeconfig per identity (mode 0700)."""
        return self.data / "kubeconfigs"

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig of the cluster's administrator."""
        return self.kubeconfigs / "admin.yaml"

    @property
    def api_key(self) -> Path:
        """The API key of the gateway, for the organisation `default` (mode 0600)."""
        return self.data / "api-key"

    @property
    def bin(self) -> Path:
        """What `local env` puts on PATH."""
        return self.data / "bin"

    @property
    def node(self) -> Path:
        """The hollow node's directory: guests and volumes."""
        return self.data / "node"

    @property
    def scratch(self) -> Path:
        """Temporary files of the components: new at each `up`, gone after `down`."""
        return self.data / "tmp"

    @property
    def settings(self) -> Path:
        """What was asked for at `up`, and the ports that were chosen (JSON)."""
        return self.data / "cluster.json"

    @property
    def state(self) -> Path:
        """What the supervisor says about itself (JSON)."""
        return self.data / "state.json"


def cache_directory() -> Path:
    """The user's cache: `$MACHINE_OPERATOR_CACHE`, else `machine-operator` in the XDG cache home."""
    own = os.environ.get("MACHINE_OPERATOR_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    return _xdg("XDG_CACHE_HOME", ".cache") / "machine-operator"


def cluster_paths(name: str = "default", *, data: Path | None = None) -> ClusterPaths:
    """The paths of the cluster `name`, in `data` or in the XDG data home.

    Raises:
        ValueError: the name is not a DNS label of at most 40 characters.
    """
    if not _NAME.match(name):
        raise ValueError(
            f"cluster name {name!r} cannot be used: take up to 40 lower-case letters, digits and hyphens"
        )
    if data is None:
        data = _xdg("XDG_DATA_HOME", ".local/share") / "machine-operator" / name
    return ClusterPaths(name=name, data=data.expanduser().absolute())


def _xdg(variable: str, default: str) -> Path:
    value = os.environ.get(variable)
    # The specification says that relative values are to be ignored.
    if value and os.path.isabs(value):
        return Path(value)
    return Path.home() / default
