"""A real Redis on loopback, for as long as a test needs it: Debian's package `redis-server`, nothing kept on disk."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["RedisServer", "redis_server"]

_PATIENCE = 10.0


class RedisServer:
    """One server, which can be ended and started again at the same port.

    Attributes:
        url: where it is.
    """

    def __init__(self, binary: str, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._log = directory / "redis.log"
        self._command = [
            *(binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory)),
            *("--save", "", "--appendonly", "no", "--logfile", str(self._log)),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        process = self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text() if self._log.exists() else "nothing"
                self.kill()
                raise AssertionError(f"redis-server at port {self.port} does not answer: {said}")
            time.sleep(0.01)

    def kill(self) -> None:
        """End it at once, by its pid."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_PATIENCE)
            self._process = None

    def freeze(self) -> None:
        """Let it take connections and say nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def redis_server(directory: Path) -> Iterator[RedisServer]:
    """A running server; the test is skipped where the package is missing."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("needs the Debian package redis-server")
    server = RedisServer(binary, directory)
    server.start()
    try:
        yield server
    finally:
        server.kill()
