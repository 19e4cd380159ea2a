"""Build a stock Debian guest with systemd, cloud-init and OpenSSH.

It boots ten times slower than the small guest, and is there to show that the operator's seed works
on images which know nothing of us. mmdebstrap installs the packages with their maintainer scripts
in a chroot, for which it needs root. The kernel and its initial RAM file system are taken out of
the tree and started directly, so the image needs neither a boot loader nor a partition table.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from machine_operator.local.guest.apt import Apt
from machine_operator.local.guest.errors import GuestError
from machine_operator.local.guest.image import Progress, Steps, ensure_image
from machine_operator.local.guest.store import Image, Manifest
from machine_operator.local.guest.tools import run

__all__ = ["CLOUD_IMAGE", "ensure_cloud_guest"]

CLOUD_IMAGE = "debian-cloud:12"

_SUITE = "bookworm"
_TOOLS = ("apt-get", "mke2fs", "mmdebstrap")
_SPACE = 3 * 2**30
_ROOT_MIB = 2048
_PACKAGES = [
    "ca-certificates",
    "cloud-init",
    "dbus",
    "e2fsprogs",
    "iproute2",
    "less",
    "linux-image-cloud-amd64",
    "openssh-server",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
]
_FILES = {
    # The last file wins, and Debian's own 90_dpkg.cfg lists every cloud there is. With a list, cloud-init
    # is switched on only if the seed's disk is already there when systemd starts its generators, which
    # under load it is not; with one entry it does not look.
    "etc/cloud/cloud.cfg.d/99_local.cfg": (
        "datasource_list: [NoCloud]\n"
        "locale: false\n"
        "system_info: {network: {renderers: [networkd]}}\n"
    ),
    "etc/cloud/ds-identify.cfg": "policy: enabled\n",
    "etc/fstab": "/dev/disk/by-label/root / ext4 errors=remount-ro 0 1\n",
    "etc/hostname": "debian\n",
}
_APPEND = (
    "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check "
    "random.trust_cpu=on root=LABEL=root rw"
)
_BUILDER = 1


def ensure_cloud_guest(cache: Path, *, progress: Progress) -> Image:
    """Return the stock guest's image, built first if there is none; that takes about a minute, and root.

    Args:
        cache: the cache directory; images go to `images` in it.
        progress: gets a line for every step.

    Raises:
        MissingTools: with the command that installs what the build needs.
        NoSpace: before anything is built.
        GuestError: if we are not root and there is something to build, or a step fails.
    """

    def build(directory: Path, steps: Steps) -> Manifest:
        return _build(directory, cache=cache, steps=steps)

    return ensure_image(
        cache,
        name=CLOUD_IMAGE,
        version=_digest(),
        tools=_TOOLS,
        space=_SPACE,
        build=build,
        progress=progress,
    )


def _build(directory: Path, *, cache: Path, steps: Steps) -> Manifest:
    if os.geteuid() != 0:
        raise GuestError(
            f"the image {CLOUD_IMAGE} can only be built as root, because mmdebstrap runs maintainer scripts "
            f"in a chroot; build it once as root with the same cache directory ({cache})"
        )
    tree, files = directory / "tree", directory / "files"
    with steps.step("packages installed"):
        _install(tree, sources=Apt(cache / "guest", progress=steps.say).debian_sources())
    with steps.step("kernel taken out and root file system made"):
        for name in ("vmlinuz", "initrd.img"):
            shutil.copyfile((tree / name).resolve(), files / name)
        for name, content in _FILES.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(content)
        root = files / "root.ext4"
        run(["mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", tree, root, f"{_ROOT_MIB}M"])
    return Manifest(
        name=CLOUD_IMAGE,
        version=_digest(),
        root=root.name,
        root_readonly=False,
        kernel="vmlinuz",
        initrd="initrd.img",
        append=_APPEND,
    )


def _install(tree: Path, *, sources: list[str]) -> None:
    hooks = ['systemctl --root="$1" enable systemd-networkd', 'rm -f "$1"/etc/ssh/ssh_host_*_key*']
    argv = ["mmdebstrap", "--mode=root", "--variant=minbase", "--quiet"]
    argv += [f"--include={','.join(_PACKAGES)}"]
    argv += ["--aptopt=Apt::Install-Recommends false", "--dpkgopt=path-exclude=/usr/share/doc/*"]
    argv += [f"--customize-hook={hook}" for hook in hooks]
    run([*argv, _SUITE, str(tree), "-"], stdin="\n".join(sources).encode() + b"\n")


def _digest() -> str:
    content = [_BUILDER, _SUITE, _PACKAGES, _FILES, _APPEND, _ROOT_MIB]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
