"""A writer for the one archive which the kernel unpacks as its initial root: cpio "newc".

Every entry is a header of thirteen eight-digit hexadecimal numbers after the magic, the name with a
NUL, and the data; name and data are each padded to four bytes. Everything belongs to root and has
no time, so that the same input gives the same bytes. The kernel describes the format in
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Entry", "device", "directory", "file", "symlink", "write_archive"]

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in the archive; `mode` has the file type bits, `device` is (major, minor)."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str, *, mode: int = 0o755) -> Entry:
    """Return a directory; name "." is the root itself, which the kernel else leaves world-writable."""
    return Entry(name, stat.S_IFDIR | mode)


def file(name: str, data: bytes, *, mode: int = 0o644) -> Entry:
    """Return a regular file."""
    return Entry(name, stat.S_IFREG | mode, data)


def symlink(name: str, *, target: str) -> Entry:
    """Return a symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def device(name: str, *, major: int, minor: int, mode: int = 0o600) -> Entry:
    """Return a character device."""
    return Entry(name, stat.S_IFCHR | mode, device=(major, minor))


def write_archive(entries: Iterable[Entry]) -> bytes:
    """Return the archive of the entries, in their order (a directory goes before what is in it)."""
    archive = bytearray()
    for inode, entry in enumerate(entries, start=1):
        _append(archive, entry, inode=inode)
    _append(archive, Entry(_TRAILER, 0), inode=0)
    return bytes(archive)


def _append(archive: bytearray, entry: Entry, *, inode: int) -> None:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    archive += _MAGIC + b"".join(b"%08X" % number for number in numbers) + name
    _pad(archive)
    archive += entry.data
    _pad(archive)


def _pad(archive: bytearray) -> None:
    archive += b"\0" * (-len(archive) % 4)
