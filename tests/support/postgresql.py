"""A PostgreSQL server of our own: Debian's programs, a directory and a port that nobody else has, gone afterwards.

A test module that wants it has `postgresql_server` (session scope) and, for an empty database of its own,
`postgresql_url` among its names.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

__all__ = ["PASSWORD", "USER", "PostgresServer", "postgresql_server", "postgresql_url"]

USER, PASSWORD = "keeper", "open-sesame-7411"
_PACKAGE = "postgresql"
_ACCOUNTS = ("postgres", "nobody")
_DEADLINE = 60.0
_OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "80",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "logging_collector": "off",
}


def find_programs() -> Path | None:
    """The directory of `initdb` and `postgres` of the newest version that is installed."""
    found = [
        path.parent
        for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")
        if (path.parent / "postgres").exists()
    ]
    if found:
        return max(found, key=lambda path: float(path.parent.name))
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


class PostgresServer:
    """One server, which can be killed, frozen and started again. Its log is in `directory`/log."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self.directory = directory
        self.port = _free_port()
        self._programs = programs
        self._data = directory / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._identity = _identity()
        if self._identity:
            shutil.chown(directory, self._identity["user"], self._identity["group"])

    def initialise(self) -> None:
        """Make the directory of data, with one user who needs a password."""
        password = self.directory / "password"
        password.write_text(PASSWORD + "\n")
        password.chmod(0o644)
        made = subprocess.run(
            [
                self._programs / "initdb",
                *("-D", self._data, "-U", USER, "--pwfile", password),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
            **self._identity,
        )
        assert made.returncode == 0, made.stderr or made.stdout

    def url(self, database: str) -> str:
        """How to reach a database of this server."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = [part for name, value in _OPTIONS.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-p", str(self.port), *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.directory,
                **self._identity,
            )
        deadline = time.monotonic() + _DEADLINE
        while not self._answers():
            assert self._process.poll() is None, f"postgres ended:\n{self.log()}"
            assert time.monotonic() < deadline, f"postgres does not answer:\n{self.log()}"
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it and wait: SIGINT ends sessions, SIGQUIT is as good as a crash."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(how)
        self._process.wait(_DEADLINE)
        self._process = None

    def kill(self) -> None:
        """As if it crashed: no session is ended in peace, and the next start has to recover."""
        self.stop(signal.SIGQUIT)

    def freeze(self) -> None:
        """Stop the server and all its sessions in their tracks, as when the network is cut: nothing is refused."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        self._signal(signal.SIGCONT)

    def log(self) -> str:
        """The end of its log."""
        return (self.directory / "log").read_text(errors="replace")[-3000:]

    async def create_database(self, *, template: str = "template0") -> str:
        """A new database, empty or with what is in another one that nobody uses; its name."""
        name = f"test_{secrets.token_hex(6)}"
        await self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    async def drop_database(self, name: str) -> None:
        """Drop a database and end whoever still uses it."""
        await self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    async def execute(self, statement: str, *, database: str = "postgres") -> None:
        """Run one statement as somebody else than the code under test."""
        connection = await asyncpg.connect(self.url(database), timeout=10)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _answers(self) -> bool:
        # It opens the port before it lets anybody in; the status file tells the latter.
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        assert self._process is not None
        return (
            len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"
        )

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, children)):
            os.kill(each, number)


def _identity() -> dict[str, Any]:
    """Whom to run as: ourselves, unless we are root, whom postgres refuses."""
    if os.geteuid() != 0:
        return {}
    for name in _ACCOUNTS:
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    raise AssertionError(f"none of the users {', '.join(_ACCOUNTS)} is there to run postgres as")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresServer]:
    """A server for the whole run."""
    programs = find_programs()
    if programs is None:
        pytest.skip(f"initdb and postgres are not here: install Debian's package {_PACKAGE}")
    # Not below pytest's own directory, which nobody but its owner may enter.
    directory = Path(tempfile.mkdtemp(prefix="machine-operator-postgresql-"))
    server = PostgresServer(programs, directory)
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory)


@pytest.fixture
async def postgresql_url(postgresql_server: PostgresServer):
    """An empty database for one test."""
    name = await postgresql_server.create_database()
    yield postgresql_server.url(name)
    await postgresql_server.drop_database(name)
