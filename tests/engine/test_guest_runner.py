"""Programs in a guest: the real runner, under each shell that guests have, over a real sshd."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from machine_operator.guest.dialer import AddressDialer
from machine_operator.guest.errors import GuestError
from machine_operator.guest.guest import Guest
from machine_operator.guest.guests import Guests
from machine_operator.guest.runner import ArtifactFile, Ended, Job, Runner
from machine_operator.kubevirt.scripts import guest_script
from tests.support.gateway import until
from tests.support.sshd import SshServer, ssh_server

SHELLS = {"dash": "/bin/dash", "bash": "/bin/bash", "busybox": "/bin/busybox sh"}
KEPT = 65536


@dataclass
class Machine:
    """A guest, and how many jobs it was given."""

    server: SshServer
    guests: Guests
    guest: Guest
    shell: str
    given: int = field(default=0)

    @property
    def runner(self) -> Runner:
        return self.guest.runner

    def job(self, *argv: str, **options: Any) -> Job:
        self.given += 1
        return Job(f"job-{self.given}", argv, **{"cwd": "/", "kept_bytes": KEPT, **options})

    async def end(self, job: Job, *, timeout: float = 60.0) -> Ended:
        ended = await self.runner.ended(job.id, timeout=timeout)
        assert ended is not None, f"{job.argv} runs"
        return ended

    async def run(self, *argv: str, **options: Any) -> tuple[Ended, bytes, bytes]:
        job = self.job(*argv, **options)
        await self.runner.start(job)
        ended = await self.end(job)
        return ended, await self.read(job), await self.read(job, stream="stderr")

    async def read(
        self, job: Job, *, stream: Any = "stdout", offset: int = 0, limit: int = 1 << 30
    ) -> bytes:
        return await output(self.runner, job.id, stream=stream, offset=offset, limit=limit)

    async def until_output(self, job: Job, expected: bytes) -> None:
        for _ in range(2000):
            if expected in await self.read(job):
                return
            await asyncio.sleep(0.01)
        pytest.fail(f"there is no {expected!r}")


async def output(
    runner: Runner, job_id: str, *, stream: Any = "stdout", offset: int = 0, limit: int = 1 << 30
) -> bytes:
    pieces = runner.output(job_id, stream, offset=offset, limit=limit)
    return b"".join([piece async for piece in pieces])


@pytest.fixture(params=SHELLS)
async def machine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Machine]:
    shell = SHELLS[request.param]
    if not os.access(shell.split()[0], os.X_OK):
        pytest.skip(f"there is no {shell}")
    async with ssh_server(tmp_path) as server:
        guests = connections(server, shell=shell)
        try:
            yield Machine(server, guests, await guests.connect(server.target()), str(request.param))
        finally:
            await guests.close()


def connections(server: SshServer, *, shell: str = "/bin/dash") -> Guests:
    return Guests(
        AddressDialer(port=server.port),
        user_authority=server.user_authority,
        host_authority=server.host_authority,
        user=server.user,
        most=8,
        places=replace(server.places, shell=shell),
    )


def shell(script: str) -> tuple[str, str, str]:
    return ("/bin/sh", "-c", script)


def exited(code: int, *, out: int = 0, err: int = 0, artifacts: bool = False) -> Ended:
    return Ended(code, None, None, stdout_bytes=out, stderr_bytes=err, artifacts=artifacts)


async def test_a_program_ends_with_what_it_ends_with(machine: Machine) -> None:
    assert await machine.run("true") == (exited(0), b"", b"")
    assert await machine.run("/bin/false") == (exited(1), b"", b"")
    assert await machine.run(*shell("echo out; echo error >&2; exit 7")) == (
        exited(7, out=4, err=6),
        b"out\n",
        b"error\n",
    )
    assert (await machine.run(*shell("exit 143")))[0] == exited(143)
    assert (await machine.run(*shell("exit 255")))[0] == exited(255)


async def test_there_is_no_shell_between(machine: Machine) -> None:
    words = ["a b", "", "*", "$HOME", "it's", "new\nline\n", "\\n", "-e", "Ł€😀", "\udcff", "tab\t"]
    ended, out, _ = await machine.run("printf", "%s\\0", *words)
    assert out == b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in words)
    assert ended.exit_code == 0


async def test_the_environment_is_that_of_a_login_with_what_was_added(machine: Machine) -> None:
    env = {"A": "1 2\n3", "my-var": "x", "IFS": "y", "UID": "7", "LC_ALL": "nonsense", "E": ""}
    ended, out, err = await machine.run("env", "-0", cwd=str(machine.server.home), env=env)
    assert err == b""
    found = dict(line.split("=", 1) for line in out.decode().split("\0") if line)
    artifacts = found.pop("DEDALUS_ARTIFACTS_DIR")
    assert found.items() >= env.items()
    assert found["HOME"] == str(machine.server.home)
    assert found["PWD"] == found["HOME"] or "PWD" not in found
    assert found["LANG"]
    allowed = {"HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "PWD", "_"}
    assert set(found) - set(env) <= allowed
    assert artifacts in map(str, machine.server.artifacts.iterdir())
    assert ended.exit_code == 0


async def test_variables_of_ours_do_not_get_in_the_way_of_the_jobs(machine: Machine) -> None:
    ours = set(re.findall(r"\b([a-z_]+)=", guest_script("runner").content))
    env = {name: f"/nonsense {name}" for name in ours}
    _, out, err = await machine.run("env", "-0", env=env)
    found = dict(line.split("=", 1) for line in out.decode().split("\0") if line)
    assert (found.items() >= env.items(), err) == (True, b"")
    ended, _, _ = await machine.run("no-such-program", env={**env, "_x": "1"})
    assert ended.exit_code == 127
    ended, _, _ = await machine.run("no-such-program", env={"file": "x", "place": "y"})
    assert ended.failure is not None


async def test_the_process_is_as_after_a_login(machine: Machine) -> None:
    script = "umask; grep -E 'SigIgn|SigBlk' /proc/self/status; ls /proc/self/fd; readlink /proc/self/fd/0"
    _, out, _ = await machine.run(*shell(script))
    umask, blocked, ignored, *fds, stdin = out.decode().split("\n")[:-1]
    assert (umask, stdin) == ("0022", "/dev/null")
    assert fds == ["0", "1", "2", "3"]  # the last is of ls itself
    # Shells leave SIGINT and SIGQUIT ignored in what they start beside themselves. Above 31 are the C library's own,
    # which come from whoever started the tests.
    usual = 0x6 if machine.shell == "busybox" else 0
    assert signals_of(blocked, "SigBlk") == 0
    assert signals_of(ignored, "SigIgn") == usual


def signals_of(line: str, name: str) -> int:
    """The mask of a line of /proc/PID/status, without real-time signals."""
    key, _, value = line.partition(":")
    assert key == name
    return int(value, 16) & 0x7FFF_FFFF


async def test_it_leads_a_process_group(machine: Machine) -> None:
    _, out, _ = await machine.run(*shell('cut -d" " -f1,5 /proc/$$/stat'))
    pid, group = out.split()
    assert pid == group


async def test_a_directory(machine: Machine, tmp_path: Path) -> None:
    odd = tmp_path / "it's a\n directory"
    odd.mkdir()
    assert (await machine.run("pwd", cwd=str(odd)))[1] == f"{odd}\n".encode()


@pytest.mark.parametrize(
    ("argv", "cwd", "why"),
    [
        (["no-such-program"], "/", "no-such-program: not found in PATH"),
        (["/no/such/program"], "/", "/no/such/program: not found"),
        (["/etc/passwd"], "/", "/etc/passwd: not executable"),
        (["/etc"], "/", "/etc: is a directory"),
        (["./a file"], "/", "./a file: not found"),
        ([""], "/", ": not found in PATH"),
        (["-x"], "/", "-x: not found in PATH"),
        (["true"], "/no/such", "cwd: /no/such: no such directory"),
        (["true"], "/etc/passwd", "cwd: /etc/passwd: no such directory"),
        (
            ["true", "x" * 131_072],
            "/",
            "the arguments and variables are longer than a program can be given",
        ),
    ],
)
async def test_a_program_that_cannot_be_started_has_failed_without_an_exit_code(
    machine: Machine, argv: list[str], cwd: str, why: str
) -> None:
    ended, out, _ = await machine.run(*argv, cwd=cwd)
    assert (ended.exit_code, ended.signal) == (None, None)
    assert ended.failure == f"exec_init_rejected: {why}"
    assert out == b""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGHUP, signal.SIGTERM])
async def test_death_by_signal_is_not_an_exit_code(
    machine: Machine, number: signal.Signals
) -> None:
    job = machine.job(*shell(f"kill -{int(number)} $$; sleep 100"))
    await machine.runner.start(job)
    ended = await machine.end(job)
    if machine.shell == "bash" and number == signal.SIGTERM:
        assert ended == exited(143), "bash does not tell, unless it was us"
    else:
        assert ended == Ended(None, number, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_signal_reaches_the_whole_group(machine: Machine, number: signal.Signals) -> None:
    job = machine.job(*shell("sleep 100 & sleep 100 & echo $!; wait"))
    await machine.runner.start(job)
    await machine.until_output(job, b"\n")
    await machine.runner.kill(job.id, number)
    assert (await machine.end(job)).signal == number
    pid = int(await machine.read(job))
    await until(lambda: not Path(f"/proc/{pid}").exists())
    await machine.runner.kill(job.id, number)


async def test_kill_right_after_the_start(machine: Machine) -> None:
    for _ in range(5):
        job = machine.job("sleep", "100")
        starting = asyncio.create_task(machine.runner.start(job))
        await asyncio.sleep(0)
        await machine.runner.kill(job.id, signal.SIGKILL)
        await starting
        assert (await machine.end(job)).signal == signal.SIGKILL


async def test_standard_input(machine: Machine) -> None:
    data = os.urandom(1 << 20)
    ended, out, _ = await machine.run("sha256sum", stdin=data)
    assert out == f"{hashlib.sha256(data).hexdigest()}  -\n".encode()
    ended, out, _ = await machine.run("wc", "-c")
    assert (ended.exit_code, out) == (0, b"0\n")


async def test_a_thousand_variables(machine: Machine) -> None:
    env = {f"VARIABLE_{number}": f"value '{number}'\n" * 3 for number in range(1000)}
    _, out, _ = await machine.run("env", "-0", env=env, kept_bytes=1 << 20)
    found = dict(line.split("=", 1) for line in out.decode().split("\0") if line)
    assert found.items() >= env.items()


async def test_large_binary_output_is_counted_to_the_byte_and_kept_from_the_beginning(
    machine: Machine, tmp_path: Path
) -> None:
    data = os.urandom(3_000_001)
    (tmp_path / "data").write_bytes(data)
    ended, out, err = await machine.run(*shell(f"cat {tmp_path}/data; head -c 70000 /dev/zero >&2"))
    assert ended == exited(0, out=len(data), err=70_000)
    assert out == data[:KEPT]
    assert err == bytes(KEPT)
    size = sum(path.stat().st_size for path in machine.server.spool.iterdir() if path.is_file())
    assert size < 3 * KEPT, "the disk of the guest has bounds"


SHORT = [
    b"hello\n",
    b"no end",
    b" \t spaces  \\n back\\\\slash \n\n\n",
    b"cr\r\n\r",
    b"\xff\xfe \xc3\n\xe2\x82\xac\n",
    b"\n" * 512,
    b"x" * 512,
    b"x" * 513,
    b"nul\0nul\n\0",
    b"\0",
    b"counted job-1 99 99\n",
]


async def test_a_short_output_comes_along_byte_for_byte(machine: Machine, tmp_path: Path) -> None:
    for data in SHORT:
        (tmp_path / "data").write_bytes(data)
        ended, out, err = await machine.run(
            *shell(f"cat {tmp_path}/data; cat {tmp_path}/data >&2"), kept_bytes=600
        )
        assert (out, err) == (data, data)
        assert ended == exited(0, out=len(data), err=len(data))


async def test_readers_that_come_late_lose_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("machine_operator.guest.runner._GRACE", 0.0)
    for _ in range(5):
        assert await machine.run(*shell("echo hello; printf oh >&2")) == (
            exited(0, out=6, err=2),
            b"hello\n",
            b"oh",
        )


async def test_for_a_short_output_no_file_is_opened(machine: Machine) -> None:
    await machine.run("true")  # which brings the script there
    machine.guest.files.close()
    ended, out, err = await machine.run(*shell("echo hello; printf oh >&2"))
    assert (ended.stdout_bytes, out, err) == (6, b"hello\n", b"oh")
    job = machine.job("echo", "hello")
    await machine.runner.start(job)
    await machine.end(job)
    assert await machine.read(job, offset=2, limit=3) == b"llo"
    assert await machine.read(job, offset=9, limit=3) == b""
    assert (await machine.run("echo", "hello", kept_bytes=3))[1] == b"hel"
    assert machine.guest.files.channels == 0
    assert (await machine.run("echo", "x" * 600))[1] == b"x" * 600 + b"\n"
    assert machine.guest.files.channels == 1


async def test_output_in_small_pieces_is_counted_to_the_byte(machine: Machine) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done"
    ended, out, _ = await machine.run(*shell(script), kept_bytes=20_000)
    expected = b"".join(b"line %d\n" % number for number in range(3000))
    assert (ended.stdout_bytes, out) == (len(expected), expected[:20_000])


async def test_output_can_be_read_while_it_runs(machine: Machine, tmp_path: Path) -> None:
    job = machine.job(
        *shell(f"printf begin; until [ -e {tmp_path}/gate ]; do sleep 0.02; done; printf end")
    )
    await machine.runner.start(job)
    await machine.until_output(job, b"begin")
    assert await machine.runner.ended(job.id, timeout=0) is None
    assert await machine.runner.ended(job.id, timeout=0.05) is None
    assert await machine.runner.state(job.id) == "running"
    (tmp_path / "gate").touch()
    assert await machine.end(job) == exited(0, out=8)
    assert await machine.read(job) == b"beginend"
    assert await machine.read(job, offset=5) == b"end"
    assert await machine.read(job, offset=100) == b""


async def test_programs_that_open_their_output_anew_do_not_destroy_it(machine: Machine) -> None:
    script = (
        "echo 1; echo 2 >/dev/stdout; echo 3 | tee /dev/stderr; echo 4 >/proc/self/fd/2; echo 5"
    )
    ended, out, err = await machine.run(*shell(script))
    assert (out, err) == (b"1\n2\n3\n5\n", b"3\n4\n")
    assert ended == exited(0, out=8, err=4)


async def test_what_goes_on_in_the_background_is_left_alone(
    machine: Machine, tmp_path: Path
) -> None:
    later = "(until [ -e {0}/{1} ]; do sleep 0.02; done; head -c 300000 /dev/zero && echo done >{0}/{1}-done)"
    out, err = later.format(tmp_path, "out"), later.format(tmp_path, "err")
    job = machine.job(*shell(f"echo now; {out} & {err} >&2 &"))
    await machine.runner.start(job)
    assert await machine.end(job, timeout=10) == exited(0, out=4)
    assert await machine.read(job) == b"now\n"
    for name in ("err", "out"):
        (tmp_path / name).touch()
        await until((tmp_path / f"{name}-done").exists)


async def test_a_silent_program_with_something_behind_it(machine: Machine, tmp_path: Path) -> None:
    later = f"until [ -e {tmp_path}/gate ]; do sleep 0.02; done; head -c 300000 /dev/zero >&2; "
    later += f"echo done >{tmp_path}/done"
    # Not a child that anybody waits for, and in a session of its own.
    job = machine.job("/usr/bin/setsid", "-f", *shell(later))
    await machine.runner.start(job)
    ended = await machine.end(job, timeout=10)
    assert (ended, await machine.read(job)) == (exited(0), b"")
    (tmp_path / "gate").touch()
    await until((tmp_path / "done").exists)


async def test_what_was_left_behind_may_still_write_for_a_moment(machine: Machine) -> None:
    ended, out, _ = await machine.run(*shell("(sleep 0.05; printf 'late') &"))
    assert (ended, out) == (exited(0, out=4), b"late")


async def test_artifacts(machine: Machine) -> None:
    script = (
        'cd "$DEDALUS_ARTIFACTS_DIR"; printf 1 >a; mkdir -p d/e; printf 22 >"d/e/b c"; '
        "ln -s /etc/passwd link; ln -s /etc dir; mkfifo pipe; printf 3 >.hidden"
    )
    job = machine.job(*shell(script))
    await machine.runner.start(job)
    assert await machine.end(job) == exited(0, artifacts=True)
    files = [ArtifactFile(".hidden", 1), ArtifactFile("a", 1), ArtifactFile("d/e/b c", 2)]
    assert await machine.runner.artifacts(job.id) == files
    pieces = [piece async for piece in machine.runner.read_artifact(job.id, "d/e/b c")]
    assert b"".join(pieces) == b"22"
    for name in ("none", "../../x", "/etc/passwd", "d/../../y"):
        with pytest.raises(FileNotFoundError):
            [piece async for piece in machine.runner.read_artifact(job.id, name)]
    assert (await machine.run("true"))[0].artifacts is False
    assert await machine.runner.artifacts("job-2") == []


async def test_many_artifacts_are_listed_up_to_a_bound(machine: Machine) -> None:
    job = machine.job(*shell('cd "$DEDALUS_ARTIFACTS_DIR"; touch $(seq 1200)'))
    await machine.runner.start(job)
    assert (await machine.end(job)).artifacts
    assert len(await machine.runner.artifacts(job.id)) == 1000


async def test_forgotten_jobs_leave_nothing(machine: Machine) -> None:
    jobs = [
        machine.job(*shell('echo x | tee "$DEDALUS_ARTIFACTS_DIR/x"'), stdin=b"x") for _ in range(5)
    ]
    for job in jobs:
        await machine.runner.start(job)
        await machine.end(job)
    await machine.runner.forget([job.id for job in jobs])
    assert [p.name for p in machine.server.spool.iterdir() if p.name.startswith("job-")] == []
    left = [p for p in machine.server.home.rglob("*") if p.is_file()]
    assert left == []
    assert await machine.runner.state(jobs[0].id) == "absent"
    assert await machine.read(jobs[0]) == b""
    with pytest.raises(GuestError, match="no job-1"):
        await machine.runner.ended(jobs[0].id, timeout=1)
    await machine.runner.forget([])
    await machine.runner.forget(["never-was"])


async def test_an_id_starts_once(machine: Machine, tmp_path: Path) -> None:
    job = machine.job(*shell(f"echo x >>{tmp_path}/count"))
    await asyncio.gather(*(machine.runner.start(job) for _ in range(3)))
    await machine.end(job)
    await machine.runner.start(job)
    assert await machine.end(job) == exited(0)
    other = connections(machine.server)
    guest = await other.connect(machine.server.target())
    await guest.runner.start(job)
    assert await guest.runner.ended(job.id, timeout=10) == exited(0)
    await other.close()
    assert (tmp_path / "count").read_text() == "x\n"


async def test_sixty_at_once(machine: Machine) -> None:
    jobs = [machine.job(*shell(f"echo {number}; sleep 0.3; exit {number}")) for number in range(60)]
    await asyncio.gather(*(machine.runner.start(job) for job in jobs))
    ends = await asyncio.gather(*(machine.end(job) for job in jobs))
    assert [ended.exit_code for ended in ends] == list(range(60))
    outputs = await asyncio.gather(*(machine.read(job) for job in jobs))
    assert outputs == [b"%d\n" % number for number in range(60)]


async def test_nothing_is_left_running(machine: Machine) -> None:
    for _ in range(20):
        await machine.run("true")
    # The runner itself; sshd's sftp-server does not have the home in its environment before it is asked for.
    await machine.guests.close()
    await until(lambda: machine.server.jobs() == [], within=20)


async def test_a_job_that_cannot_be_said_is_an_error_and_no_job(machine: Machine) -> None:
    for job in (machine.job("a\0"), machine.job("true", env={"": ""}), machine.job()):
        with pytest.raises(ValueError):
            await machine.runner.start(job)
    with pytest.raises(ValueError):
        await machine.runner.state("../x")
