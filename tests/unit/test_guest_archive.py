"""The cpio writer and the way from a bzImage to a bootable kernel."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine_operator.local.guest import cpio
from machine_operator.local.guest.errors import GuestError
from machine_operator.local.guest.kernel import extract_vmlinux, find_modules

ELF = b"\x7fELF" + bytes(range(256)) * 8


def read_archive(archive: bytes) -> list[tuple[str, int, bytes, tuple[int, int]]]:
    """Read a newc archive with nothing but its description in the kernel's documentation."""
    entries: list[tuple[str, int, bytes, tuple[int, int]]] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name_size, size = numbers[11], numbers[6]
        start = at + 110
        name = archive[start : start + name_size]
        assert name.endswith(b"\0")
        data_at = (start + name_size + 3) // 4 * 4
        if name == b"TRAILER!!!\0":
            assert len(archive) % 4 == 0
            return entries
        assert numbers[2:4] == [0, 0], "everything belongs to root"
        entries.append(
            (
                name[:-1].decode(),
                numbers[1],
                archive[data_at : data_at + size],
                (numbers[9], numbers[10]),
            )
        )
        at = (data_at + size + 3) // 4 * 4


@given(
    st.lists(st.tuples(st.from_regex(r"[a-zé/_.-]{1,40}", fullmatch=True), st.binary(max_size=70)))
)
def test_an_archive_gives_back_every_name_and_byte(files: list[tuple[str, bytes]]) -> None:
    archive = cpio.write_archive(cpio.file(name, data, mode=0o640) for name, data in files)
    expected = [(name, stat.S_IFREG | 0o640, data, (0, 0)) for name, data in files]
    assert read_archive(archive) == expected


def test_an_archive_holds_directories_links_and_devices() -> None:
    archive = cpio.write_archive(
        [
            cpio.directory("."),
            cpio.symlink("bin/sh", target="busybox"),
            cpio.device("dev/console", major=5, minor=1),
        ]
    )
    assert read_archive(archive) == [
        (".", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("bin/sh", stat.S_IFLNK | 0o777, b"busybox", (0, 0)),
        ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
    ]


def bzimage(payload: bytes, *, setup_sectors: int = 3, offset: int = 100) -> bytes:
    """Lay out the fields of the x86 boot protocol that matter here."""
    image = bytearray(((setup_sectors or 4) + 1) * 512 + offset)
    image[0x1F1] = setup_sectors
    image[0x202:0x206] = b"HdrS"
    payload += struct.pack("<I", len(ELF))
    struct.pack_into("<II", image, 0x248, offset, len(payload))
    return bytes(image) + payload + b"what follows the payload"


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
@pytest.mark.parametrize("setup_sectors", [0, 3, 27])
def test_the_kernel_is_found_by_the_setup_header(compress: object, setup_sectors: int) -> None:
    assert callable(compress)
    image = bzimage(compress(ELF), setup_sectors=setup_sectors)
    assert extract_vmlinux(image) == ELF


@pytest.mark.skipif(shutil.which("lz4") is None, reason="lz4 is not installed")
def test_debians_own_compression_is_understood() -> None:
    legacy = subprocess.run(["lz4", "-l", "-c"], input=ELF, capture_output=True, check=True).stdout
    assert legacy.startswith(b"\x02\x21\x4c\x18")
    assert extract_vmlinux(bzimage(legacy)) == ELF


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (b"", "not an x86 bzImage"),
        (b"\0" * 4096, "not an x86 bzImage"),
        (bzimage(b"????????"), "unknown way"),
        (bzimage(gzip.compress(b"a script")), "not an ELF file"),
        (bzimage(gzip.compress(ELF))[:-60], "cut short"),
        (bzimage(gzip.compress(ELF)[:-9]), "cannot be unpacked"),
    ],
)
def test_other_kernels_are_refused_with_a_reason(image: bytes, complaint: str) -> None:
    with pytest.raises(GuestError, match=complaint):
        extract_vmlinux(image)


def test_modules_come_in_the_order_asked_for_and_builtin_ones_are_left_out(tmp_path: Path) -> None:
    kernel = tmp_path / "lib/modules/6.1/kernel"
    kernel.mkdir(parents=True)
    (kernel / "virtio_blk.ko").write_bytes(b"block")
    (kernel / "nls-ascii.ko.xz").write_bytes(lzma.compress(b"ascii"))
    (kernel.parent / "modules.builtin").write_text(
        "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio-ring.ko\n"
    )

    found = find_modules(tmp_path, names=["nls_ascii", "ext4", "virtio_ring", "virtio_blk"])
    assert [(module.name, module.data) for module in found] == [
        ("nls_ascii", b"ascii"),
        ("virtio_blk", b"block"),
    ]
    with pytest.raises(GuestError, match="no module erofs, overlay"):
        find_modules(tmp_path, names=["erofs", "virtio_blk", "overlay"])
