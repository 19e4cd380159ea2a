"""Whether hardware virtualization really works here.

/dev/kvm may be there and be useless: in nested virtual machines the first guest instruction may
hang or fail. So a kernel is booted with it once, for a moment, and only what that guest's own init
prints on the serial console counts. The answer is kept for this boot of the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import tempfile
from pathlib import Path

from machine_operator.local.guest.store import Image

__all__ = ["Accelerator"]

log = logging.getLogger(__name__)

_LIMIT = 12.0
_INIT = b"Run /init as init process"
_DEVICE = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Accelerator:
    """Answers once per boot of the host whether KVM is to be used.

    Args:
        data: the node's directory, where the answer is kept.
        binary: QEMU.
    """

    def __init__(self, data: Path, *, binary: str = "qemu-system-x86_64") -> None:
        self._file = data / "kvm.json"
        self._binary = binary
        self._lock = asyncio.Lock()
        self._answer: bool | None = None

    async def usable(self, image: Image | None) -> bool:
        """Whether guests may use KVM; `image` serves for the test, where it has a kernel."""
        async with self._lock:
            if self._answer is None:
                self._answer = self._kept()
            if self._answer is None and not os.access(_DEVICE, os.R_OK | os.W_OK):
                self._answer = False
            if self._answer is None:
                if image is None or image.kernel is None:
                    return False  # nothing to test with; perhaps the next image has a kernel
                self._answer = await self._try(image)
                self._keep(self._answer)
                log.info("KVM self-test: guests use %s", "KVM" if self._answer else "emulation")
            return self._answer

    def _kept(self) -> bool | None:
        try:
            value = json.loads(self._file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return bool(value["works"]) if value.get("boot") == _boot_id() else None

    def _keep(self, works: bool) -> None:
        self._file.write_text(json.dumps({"boot": _boot_id(), "works": works}))

    async def _try(self, image: Image) -> bool:
        with tempfile.TemporaryDirectory(prefix="kvm-test-") as directory:
            console = Path(directory) / "console.log"
            process = await asyncio.create_subprocess_exec(
                *_test_command(self._binary, image, console),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                async with asyncio.timeout(_LIMIT):
                    return await _init_spoke(console, process)
            except TimeoutError:
                return False
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


async def _init_spoke(console: Path, process: asyncio.subprocess.Process) -> bool:
    """Wait until something that is not the kernel's was printed after init was started."""
    while True:
        _, started, after = _text(console).partition(_INIT)
        if started and any(_is_inits(line) for line in after.split(b"\n")[1:]):
            return True
        if process.returncode is not None:
            return False
        await asyncio.sleep(0.1)


def _text(console: Path) -> bytes:
    return console.read_bytes() if console.exists() else b""


def _is_inits(line: bytes) -> bool:
    stripped = line.strip()
    # The kernel's own lines begin with a time stamp in brackets.
    return bool(stripped) and not stripped.startswith(b"[")


def _test_command(binary: str, image: Image, console: Path) -> list[str]:
    words = [word for word in (image.append or "console=ttyS0").split() if word != "quiet"]
    argv = [binary, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-M", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256M"]
    argv += ["-kernel", str(image.kernel), "-append", " ".join([*words, "panic=-1"])]
    if image.initrd is not None:
        argv += ["-initrd", str(image.initrd)]
    argv += ["-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"]
    return argv


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
