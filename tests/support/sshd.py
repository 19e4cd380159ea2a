"""A guest's way in, on this machine: a real OpenSSH server on loopback, set up like the seed sets up a guest.

It has a host certificate, and accepts user certificates with the name of its VM and nothing else. Home, spool and
scripts are in a directory of the test. It runs as who the tests run as; jobs that outlived it are ended with it.

    async with ssh_server(tmp_path) as server:
        guests = Guests(AddressDialer(port=server.port), ..., places=server.places)
        guest = await guests.connect(server.target())
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import socket
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from machine_operator.guest.places import Places
from machine_operator.guest.target import GuestTarget
from machine_operator.kubevirt.authority import Authority

__all__ = ["SshServer", "ssh_server"]

_PRIVILEGE_SEPARATION = Path("/run/sshd")

_SFTP = ("/usr/lib/openssh/sftp-server", "/usr/libexec/sftp-server", "/usr/lib/ssh/sftp-server")


class SshServer:
    """One sshd.

    Attributes:
        vm: the principal of its host certificate, and of the certificates that it accepts.
        port: of 127.0.0.1.
        user: who logs in.
        places: where things are in this guest.
        user_authority: whose certificates it accepts.
        host_authority: who signed its host key.
    """

    def __init__(
        self,
        directory: Path,
        *,
        vm: str,
        user_authority: Authority,
        host_authority: Authority,
        settings: Sequence[str],
    ) -> None:
        self.vm = vm
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.user_authority, self.host_authority = user_authority, host_authority
        self.places = Places(
            home=str(directory / "home"),
            spool=str(directory / "spool"),
            scripts=str(directory / "scripts"),
        )
        self.port = _free_port()
        self._directory, self._settings = directory, settings
        self._process: asyncio.subprocess.Process | None = None
        for path in (directory, Path(self.places.home), directory / "etc"):
            path.mkdir(parents=True, exist_ok=True)
        self.certify(host_authority, principal=vm)

    @property
    def home(self) -> Path:
        """Of the user."""
        return Path(self.places.home)

    @property
    def spool(self) -> Path:
        """Where executions are kept."""
        return Path(self.places.spool)

    @property
    def artifacts(self) -> Path:
        """Where executions leave files."""
        return Path(self.places.artifacts)

    @property
    def scripts(self) -> Path:
        """Where our programs are."""
        return Path(self.places.scripts)

    @property
    def certificate(self) -> Path:
        """Of its host key."""
        return self._directory / "etc/host-cert.pub"

    @property
    def log(self) -> str:
        """What it has said."""
        return (self._directory / "etc/sshd.log").read_text(errors="replace")

    def target(self, *, machine_uid: str = "uid-1", instance_uid: str = "boot-1") -> GuestTarget:
        """This guest, as one boot of a machine."""
        return GuestTarget(
            org="ns",
            machine_uid=machine_uid,
            vm=self.vm,
            instance_uid=instance_uid,
            addresses=("127.0.0.1",),
        )

    def certify(self, authority: Authority, *, principal: str) -> None:
        """Give it a new host key, signed by that authority for that name; takes effect at the next start."""
        key = ed25519.Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        etc = self._directory / "etc"
        private = etc / "host"
        private.unlink(missing_ok=True)
        private.touch(mode=0o600)
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            )
        )
        certificate = authority.certify_host(public.decode(), key_id="test", principals=[principal])
        self.certificate.write_text(certificate + "\n")
        (etc / "user-ca.pub").write_text(self.user_authority.public + "\n")
        (etc / "principals").write_text(self.vm + "\n")

    async def start(self) -> None:
        """Run it, and return when it listens."""
        etc = self._directory / "etc"
        config = etc / "sshd_config"
        config.write_text("\n".join(self._config(etc)) + "\n")
        _separate_privileges()
        log = etc / "sshd.log"
        with log.open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                "/usr/sbin/sshd",
                "-D",
                "-e",
                "-f",
                str(config),
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=output,
            )
        process = self._process
        await _until(
            lambda: "Server listening" in self.log or process.returncode is not None,
            what="sshd listens",
        )
        assert process.returncode is None, f"sshd ended: {self.log}"

    async def stop(self) -> None:
        """End it with all its connections, as a power cut would; jobs go on."""
        if self._process is not None:
            self.cut(including=self._process.pid)
            await self._process.wait()
            self._process = None

    def cut(self, *, including: int | None = None) -> int:
        """Kill every connection that is open now; how many processes that were."""
        assert self._process is not None
        ended = 0
        for pid in [*_sshd_below(self._process.pid), *([including] if including else [])]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                ended += 1
        return ended

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Its connections stay open, and nothing comes from them, for as long as the block runs."""
        assert self._process is not None
        pids = _sshd_below(self._process.pid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def jobs(self) -> list[int]:
        """Processes that run in this guest apart from sshd's own: those with its home in their environment."""
        mark = f"HOME={self.places.home}".encode()
        return [pid for pid in _pids() if mark in _read(pid, "environ").split(b"\0")]

    def runners(self) -> list[int]:
        """The runners that serve connections, without the keepers of their jobs."""
        parents = {
            pid: int(stat.rpartition(b")")[2].split()[1])
            for pid in self.jobs()
            if (stat := _read(pid, "stat"))  # else it has just ended
        }
        mark = self.places.spool.encode()
        return [
            pid
            for pid, parent in parents.items()
            if mark in _read(pid, "cmdline")
            and parent not in parents
            and _read(parent, "comm").startswith(b"sshd")
        ]

    async def end_jobs(self) -> None:
        """Kill what still runs in it."""
        while pids := self.jobs():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.01)

    def _config(self, etc: Path) -> list[str]:
        sftp = next((path for path in _SFTP if os.path.exists(path)), "internal-sftp")
        # Of two settings sshd takes the first one, so the test's own come first.
        return [
            *self._settings,
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {etc}/host",
            *([f"HostCertificate {self.certificate}"] if self.certificate.exists() else []),
            f"TrustedUserCAKeys {etc}/user-ca.pub",
            f"AuthorizedPrincipalsFile {etc}/principals",
            "AuthorizedKeysFile none",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "StrictModes no",
            "UsePAM no",
            f"PidFile {etc}/sshd.pid",
            "PrintMotd no",
            "LogLevel VERBOSE",
            "MaxSessions 1000",
            "MaxStartups 200",
            f"Subsystem sftp {sftp}",
            f"SetEnv HOME={self.places.home}",
        ]


@asynccontextmanager
async def ssh_server(
    directory: Path,
    *,
    vm: str = "m-1",
    user_authority: Authority | None = None,
    host_authority: Authority | None = None,
    settings: Sequence[str] = (),
) -> AsyncIterator[SshServer]:
    """Run one for as long as the block runs.

    Args:
        directory: of the test; its files go to `DIRECTORY/guest-VM`.
        vm: its name.
        user_authority: instead of a new one.
        host_authority: instead of a new one.
        settings: lines of sshd_config that win over the usual ones.
    """
    server = SshServer(
        directory / f"guest-{vm}",
        vm=vm,
        user_authority=user_authority or Authority.generate(),
        host_authority=host_authority or Authority.generate(),
        settings=settings,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
        await server.end_jobs()


async def _until(holds: Callable[[], bool], *, what: str, within: float = 30.0) -> None:
    deadline = asyncio.get_running_loop().time() + within
    while not holds():
        assert asyncio.get_running_loop().time() < deadline, f"not within {within:g} s: {what}"
        await asyncio.sleep(0.01)


def _separate_privileges() -> None:
    """As root sshd needs this directory."""
    with contextlib.suppress(OSError):
        _PRIVILEGE_SEPARATION.mkdir(mode=0o755)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _sshd_below(ancestor: int) -> list[int]:
    """The sshd processes that have it as ancestor."""
    parents: dict[int, int] = {}
    names: dict[int, bytes] = {}
    for pid in _pids():
        head, _, rest = _read(pid, "stat").rpartition(b")")
        if rest:
            names[pid], parents[pid] = head.partition(b"(")[2], int(rest.split()[1])
    below, found = {ancestor}, []
    while added := [pid for pid, parent in parents.items() if parent in below and pid not in below]:
        below.update(added)
        found += [pid for pid in added if names[pid].startswith(b"sshd")]
    return found
