"""From Debian's kernel package to what QEMU boots directly: the kernel, and its modules in order.

A bzImage is a small real-mode loader, a decompressor and a compressed payload. The setup header
(Documentation/arch/x86/boot.rst in the kernel) tells where the payload is; what comes out of it is
the ELF file `vmlinux`, which QEMU starts through its PVH entry: under software emulation that skips
seconds of decompression and relocation.
"""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from machine_operator.local.guest.errors import GuestError
from machine_operator.local.guest.tools import run

__all__ = ["Module", "extract_vmlinux", "find_modules"]

_SETUP_SECTORS = 0x1F1
_HEADER_MAGIC_AT = 0x202
_PAYLOAD_OFFSET = 0x248
_PAYLOAD_LENGTH = 0x24C
_SECTOR = 512
_SIZE_FIELD = 4  # the kernel's build appends the uncompressed size to every payload
_ELF = b"\x7fELF"


@dataclass(frozen=True, slots=True)
class Module:
    """One kernel module, uncompressed, ready for insmod."""

    name: str
    data: bytes


def extract_vmlinux(image: bytes) -> bytes:
    """Return the ELF kernel inside a bzImage.

    Raises:
        GuestError: if this is no bzImage, or its payload is of a kind that we do not know.
    """
    payload = _payload(image)
    for magic, decompress in _DECOMPRESSORS.items():
        if payload.startswith(magic):
            try:
                kernel = decompress(payload[:-_SIZE_FIELD])
            except (EOFError, OSError, lzma.LZMAError, GuestError) as error:
                raise GuestError(f"the kernel's payload cannot be unpacked: {error}") from error
            break
    else:
        raise GuestError(
            f"the kernel is compressed in an unknown way (starts with {payload[:4].hex()})"
        )
    if not kernel.startswith(_ELF):
        raise GuestError("the kernel's payload is not an ELF file: QEMU cannot start it directly")
    return kernel


def find_modules(tree: Path, *, names: Sequence[str]) -> list[Module]:
    """Return the named modules, in the order of the names, from below lib/modules/VERSION of a kernel package.

    A module that this kernel has built in is left out.

    Raises:
        GuestError: if one is neither there nor built in.
    """
    files = {_module_name(path): path for path in tree.rglob("*.ko*")}
    listed = (line for path in tree.rglob("modules.builtin") for line in path.read_text().split())
    builtin = {_module_name(Path(line)) for line in listed}
    missing = [name for name in names if name not in files and name not in builtin]
    if missing:
        raise GuestError(f"the kernel package has no module {', '.join(missing)}")
    return [Module(name, _read_module(files[name])) for name in names if name in files]


def _payload(image: bytes) -> bytes:
    if image[_HEADER_MAGIC_AT : _HEADER_MAGIC_AT + 4] != b"HdrS":
        raise GuestError("the kernel package's vmlinuz is not an x86 bzImage")
    (offset,) = struct.unpack_from("<I", image, _PAYLOAD_OFFSET)
    (length,) = struct.unpack_from("<I", image, _PAYLOAD_LENGTH)
    # Zero sectors means four, says the boot protocol; the boot sector itself comes on top.
    start = ((image[_SETUP_SECTORS] or 4) + 1) * _SECTOR + offset
    if length <= _SIZE_FIELD or start + length > len(image):
        raise GuestError("the kernel package's vmlinuz is cut short")
    return image[start : start + length]


def _module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _read_module(path: Path) -> bytes:
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data


def _lz4(payload: bytes) -> bytes:
    return run(["lz4", "-dc"], stdin=payload)


def _zstd(payload: bytes) -> bytes:
    return run(["zstd", "-dc"], stdin=payload)


_DECOMPRESSORS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x02\x21\x4c\x18": _lz4,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x1f\x8b": gzip.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
}
