"""What the small guest is made of: Debian packages, kernel modules, and the files in `data/`.

The digest of all that is the guest's version: an image with another digest is built again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable

__all__ = ["Recipe", "data_files"]

# Raise this whenever the builder makes something else of the same input.
_BUILDER = 2

_PACKAGES = [
    "base-files",
    "base-passwd",
    "bash",
    "bsdutils",
    "busybox-static",
    "ca-certificates",
    "coreutils",
    "debianutils",
    "diffutils",
    "e2fsprogs",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "iproute2",
    "iputils-ping",
    "jq",
    "kmod",
    "less",
    "libc-bin",
    "linux-image-cloud-amd64",
    "login",
    "mawk",
    "mount",
    "ncurses-base",
    "netbase",
    "netcat-openbsd",
    "openssh-server",
    "openssh-sftp-server",
    "passwd",
    "procps",
    "sed",
    "sudo",
    "tar",
    "util-linux",
    "wget",
]

# Only maintainer scripts need these, and we run none.
_DROPPED = [
    "adduser",
    "cpio",
    "debconf",
    "dpkg",
    "gcc-*-base",
    "init-system-helpers",
    "initramfs-tools*",
    "klibc-utils",
    "libdebconfclient0",
    "libfile-find-rule-perl",
    "libgdbm*",
    "libklibc",
    "libnumber-compare-perl",
    "libperl*",
    "libtext-glob-perl",
    "linux-base",
    "linux-image-cloud-amd64",
    "logsave",
    "lsb-base",
    "openssl",
    "perl*",
    "runit-helper",
    "sensible-utils",
    "sysvinit-utils",
    "ucf",
    "udev",
    "usrmerge",
]

# In the order in which insmod can load them.
_BOOT_MODULES = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "cdrom",
    "isofs",
    "button",
    "evdev",
    "libcrc32c",
    "erofs",
    "overlay",
]

# Loaded only by a guest that needs them.
_SPARE_MODULES = ["fat", "vfat", "nls_cp437", "nls_ascii", "nls_utf8"]

# Applets without which people miss something, where no package above brings the real thing. Not those
# that look up host names: a static program cannot load the C library's resolvers, and crashes.
_APPLETS = [
    "halt",
    "httpd",
    "nslookup",
    "poweroff",
    "reboot",
    "top",
    "unzip",
    "vi",
    "xxd",
]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what the small guest contains, except the packages' versions."""

    packages: tuple[str, ...] = tuple(_PACKAGES)
    dropped: tuple[str, ...] = tuple(_DROPPED)
    boot_modules: tuple[str, ...] = tuple(_BOOT_MODULES)
    spare_modules: tuple[str, ...] = tuple(_SPARE_MODULES)
    applets: tuple[str, ...] = tuple(_APPLETS)
    files: dict[str, bytes] = field(default_factory=lambda: dict(data_files()))
    builder: int = _BUILDER

    def digest(self) -> str:
        """Return the recipe's version: 16 hexadecimal digits that change with anything in it."""
        content = asdict(self)
        content["files"] = {
            name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()
        }
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def data_files() -> Iterator[tuple[str, bytes]]:
    """Yield the shipped files as (path below `data/`, content), in a fixed order."""
    yield from _walk(resources.files(__package__) / "data", prefix="")


def _walk(directory: Traversable, *, prefix: str) -> Iterator[tuple[str, bytes]]:
    for item in sorted(directory.iterdir(), key=lambda item: item.name):
        if item.is_dir():
            yield from _walk(item, prefix=f"{prefix}{item.name}/")
        else:
            yield f"{prefix}{item.name}", item.read_bytes()
