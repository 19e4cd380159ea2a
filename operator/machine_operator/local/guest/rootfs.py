"""The guest's root tree, and the initial RAM file system in front of it.

Packages are unpacked without running their maintainer scripts, so neither root nor a chroot is
needed; what those scripts would have done that matters here (accounts, a few links, the library
cache) is done by hand. Owners do not matter in the tree: mkfs.erofs gives everything to root.
Set-id bits would then all mean root, so only sudo keeps its own.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from machine_operator.local.guest import cpio
from machine_operator.local.guest.errors import GuestError
from machine_operator.local.guest.kernel import Module
from machine_operator.local.guest.recipe import Recipe
from machine_operator.local.guest.tools import run

__all__ = ["LOGIN_USER", "finish_tree", "stage1_archive", "unpack"]

LOGIN_USER = "machine"

_OVERLAY = "rootfs/"
_MERGED = ("bin", "lib", "lib64", "sbin")
_LIBRARY = "usr/lib/machine"
_SETID = frozenset({"usr/bin/sudo"})
# Documentation is three quarters of many packages, and nobody reads it in there.
_UNUSED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/bash-completion",
)
_MODES = {"usr/lib/machine/init.sh": 0o755, "etc/sudoers.d/machine": 0o440}
_DIRECTORIES = (
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "root",
    "home/machine",
    "mnt",
    "var/log",
    "var/tmp",
    "etc/ssh/sshd_config.d",
    "etc/ssh/authorized_keys",
)
_LINKS = {
    "etc/mtab": "../proc/self/mounts",
    "usr/bin/ash": "busybox",
    "usr/bin/awk": "mawk",
    "usr/bin/editor": "vi",
    "usr/bin/nc": "nc.openbsd",
    "usr/bin/pager": "less",
    "usr/bin/sh": "busybox",
    "usr/bin/which": "which.debianutils",
}
_ACCOUNTS = {
    "passwd": "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\nmachine:x:1000:1000:machine:/home/machine:/bin/ash\n",
    "group": "machine:x:1000:\n",
}


def unpack(packages: Iterable[Path], *, into: Path) -> None:
    """Unpack Debian packages over one another into a tree with merged /usr.

    Raises:
        GuestError: if one cannot be unpacked.
    """
    for name in _MERGED:
        _make_directory(into / "usr" / name)
        (into / name).symlink_to(f"usr/{name}")
    for package in packages:
        tar = run(["dpkg-deb", "--fsys-tarfile", package])
        # Without the option the packages' own bin and lib directories would replace the links.
        options = ["--keep-directory-symlink", "--no-same-owner", "--preserve-permissions"]
        run(["tar", "-x", *options, "-C", into], stdin=tar)


def finish_tree(tree: Path, *, recipe: Recipe, modules: Sequence[Module]) -> None:
    """Do by hand what the packages' scripts would have done, and add our own files."""
    _remove_unused(tree)
    for name in _DIRECTORIES:
        _make_directory(tree / name)
    _write_accounts(tree / "etc", masters=tree / "usr/share/base-passwd")
    links = dict(_LINKS)
    links |= {
        f"usr/bin/{name}": "busybox" for name in recipe.applets if not _is_command(tree, name)
    }
    for name, target in links.items():
        path = tree / name
        # What a package brings under that name is the better one.
        if not path.exists():
            path.symlink_to(target)
    for name, data in recipe.files.items():
        if name.startswith(_OVERLAY):
            _write(tree / name.removeprefix(_OVERLAY), data)
    for module in modules:
        _write(tree / _LIBRARY / "modules" / f"{module.name}.ko", module.data)
    _write(tree / "etc/ssl/certs/ca-certificates.crt", _authorities(tree))
    for name, mode in _MODES.items():
        (tree / name).chmod(mode)
    run(["ldconfig", "-r", tree])


def stage1_archive(*, script: bytes, busybox: bytes, modules: Sequence[Module]) -> bytes:
    """Return the initial RAM file system: the script as PID 1, busybox to run it, and the boot modules in order."""
    names = ("bin", "modules", "dev", "proc", "sys", "lower", "layer", "root")
    numbered = enumerate(modules)
    return cpio.write_archive(
        [
            cpio.directory("."),
            *(cpio.directory(name) for name in names),
            # The kernel opens the console for PID 1 before there is a devtmpfs.
            cpio.device("dev/console", major=5, minor=1),
            cpio.file("init", script, mode=0o755),
            cpio.file("bin/busybox", busybox, mode=0o755),
            cpio.symlink("bin/sh", target="busybox"),
            *(cpio.file(f"modules/{at:02}-{one.name}.ko", one.data) for at, one in numbered),
        ]
    )


def _remove_unused(tree: Path) -> None:
    for name in _UNUSED:
        if (tree / name).exists():
            shutil.rmtree(tree / name)
    for directory, directories, names in os.walk(tree):
        for name in directories + names:
            path = Path(directory, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and str(path.relative_to(tree)) not in _SETID:
                path.chmod(stat.S_IMODE(mode) & 0o777)


def _write_accounts(etc: Path, *, masters: Path) -> None:
    for name, extra in _ACCOUNTS.items():
        master = masters / f"{name}.master"
        if not master.exists():
            raise GuestError(f"the package base-passwd has no {master.name}")
        _write(etc / name, (master.read_text().replace(":*:", ":x:") + extra).encode())
    users = [line.partition(":")[0] for line in (etc / "passwd").read_text().splitlines()]
    # "*" is an account without a password; sshd takes "!" for a locked one and refuses its keys.
    _write(etc / "shadow", "".join(f"{user}:*:19000:0:99999:7:::\n" for user in users).encode())
    (etc / "shadow").chmod(0o600)


def _authorities(tree: Path) -> bytes:
    """All certificates of the package ca-certificates in one file, as update-ca-certificates makes it."""
    files = sorted((tree / "usr/share/ca-certificates").rglob("*.crt"))
    return b"".join(file.read_bytes().rstrip() + b"\n" for file in files)


def _is_command(tree: Path, name: str) -> bool:
    return any((tree / "usr" / directory / name).exists() for directory in ("bin", "sbin"))


def _write(path: Path, data: bytes) -> None:
    _make_directory(path.parent)
    path.write_bytes(data)
    path.chmod(0o644)


def _make_directory(path: Path) -> None:
    # The builder's umask may be 077, and sshd reads keys as the user who logs in.
    if not path.is_dir():
        _make_directory(path.parent)
        path.mkdir()
        path.chmod(0o755)
