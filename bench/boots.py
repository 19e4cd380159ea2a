"""How long a machine takes to answer over SSH, beside the same guest booted by hand with the same QEMU line.

Two arms, in turns and in changing order, so that a drift of the host's speed hits both:
  bare      QEMU's own argv from the hollow node's builder, a blank home disk, ssh when the console marker appears
  operator  `kubectl apply`, wait for phase running, ssh
The control plane runs beside both. The same ssh client goes to a loopback address in both. The operator's arm then
goes on: a login through the API server, to sleep, and awake again.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clusters import BenchError, Cluster, processor_seconds, progress
from figures import Figure, Report, measured
from memory import machine_manifest
from timeline import Timeline, marker, now, started, watching

from machine_operator.kubevirt.seed import LOGIN_USER
from machine_operator.local.guest.store import Image, ImageStore
from machine_operator.local.hollow.plan import Source, guest_plan, image_source
from machine_operator.local.hollow.qemu import GuestPlan, command_line
from machine_operator.local.hollow.rundir import GuestRecord, RunDirectory

__all__ = ["BootBench", "bare_boot", "measure", "template"]

_RATIO = 1.5
_BOOT_LIMIT = 120.0
_HOME_GIB = 1
_SEED = "seed.iso"

_OPERATOR_STEPS = (
    # What was seen, and what it took since the line before.
    ("Machine there", "kubectl apply until the Machine is there"),
    ("VirtualMachine there", "until the VM is there"),
    ("VirtualMachineInstance there", "until the VMI is there"),
    ("Pod there", "until the launcher pod is there"),
    ("Pod scheduled", "until the pod is scheduled"),
    ("QEMU started", "until QEMU is started"),
    ("marker", "until the guest says that sshd listens"),
    ("Machine running", "until the phase is running"),
    ("ssh", "until ssh answered"),
)
_WAKE_STEPS = (
    ("VirtualMachineInstance there", "kubectl patch until the VMI is there"),
    *_OPERATOR_STEPS[3:],
)
_BARE_STEPS = (
    ("marker", "QEMU started until the guest says that sshd listens"),
    _OPERATOR_STEPS[-1],
)

_GUEST_CPU = "guest, processor"
_PLANE_CPU = "control plane, processor"

Times = dict[str, float]
"""Seconds since the begin, by milestone; and, in seconds of one processor, what the guest had used when it spoke and
the control plane at the end.
"""


@dataclass(frozen=True, slots=True)
class BootBench:
    """What boots are measured with.

    Attributes:
        directory: for the bare guests.
        key: file of the SSH key that all guests let in; its public half lies beside it.
    """

    cluster: Cluster
    timeline: Timeline
    directory: Path
    key: Path

    @property
    def public_key(self) -> str:
        """One line."""
        return self.key.with_suffix(".pub").read_text().strip()


def measure(report: Report, directory: Path, *, repeats: int) -> None:
    """Run both arms `repeats` times in a cluster of their own."""
    asyncio.run(_measure(report, directory, repeats=repeats))


async def _measure(report: Report, directory: Path, *, repeats: int) -> None:
    with Cluster(directory) as cluster:
        progress("boot: starting a cluster")
        cluster.up()
        key = directory / "id_ed25519"
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
        await _run(*keygen, what="ssh-keygen")
        async with watching(cluster) as timeline:
            bench = BootBench(cluster, timeline, directory=directory, key=key)
            raw = await _both_arms(bench, report, repeats=repeats)
        report.raw["boot"] = raw
        report.add(*_figures(raw))
        report.add(measured("local down, one machine running", [cluster.down()], "s", limit=5.0))


async def _both_arms(bench: BootBench, report: Report, *, repeats: int) -> dict[str, Any]:
    progress("boot: a first machine, not counted")
    plan = await template(bench)
    raw: dict[str, Any] = {"bare": [], "operator": [], "wake": [], "sleep": [], "local ssh": []}
    raw["direct ssh"] = []
    for number in range(1, repeats + 1):
        for arm in ("bare", "operator") if number % 2 else ("operator", "bare"):
            await asyncio.to_thread(bench.cluster.wait_quiet)
            if arm == "bare":
                raw["bare"].append(await bare_boot(bench, plan, number=number))
            else:
                name = f"boot-{number}"
                raw["operator"].append(await _operated(bench, name))
                await _extras(bench, name, raw)
                await _delete(bench, name)
        bare, operator = raw["bare"][-1]["ssh"], raw["operator"][-1]["ssh"]
        progress(
            f"boot {number}/{repeats}: bare {bare:.2f} s, operator {operator:.2f} s "
            f"({operator / bare:.2f} x), awake {raw['wake'][-1]['ssh']:.2f} s"
        )
        report.note_load(f"after boot {number}")
    await _operated(bench, "for-the-down")
    return raw


# ---- the bare arm


async def template(bench: BootBench) -> GuestPlan:
    """The plan of a machine of the operator's, with a seed of our own; checked against the QEMU that really ran."""
    await _operated(bench, "template")
    [record] = bench.cluster.guests()
    assert record.process is not None
    settings = bench.cluster.settings
    image = ImageStore(Path(settings.images)).find(settings.default_image)
    if image is None:
        raise BenchError(f"{settings.default_image} is not in {settings.images}")
    real = _command_of(record.process.pid)
    seed = RunDirectory(bench.cluster.paths.node / "run" / record.uid).seed
    shutil.copy(seed, bench.directory / _SEED)
    instance = bench.timeline.instance()
    plan = _plan(bench, instance, image=image, record=record, kvm="kvm" in real)
    _check_same(real, plan, seed=seed, record=record)
    await _delete(bench, "template")
    network = settings.network.split(".")
    # An address that the node comes to only after 50000 machines.
    return replace(plan, address=f"{network[0]}.{network[1]}.200.7")


def _plan(
    bench: BootBench, instance: dict[str, Any], *, image: Image, record: GuestRecord, kvm: bool
) -> GuestPlan:
    home = bench.directory / "home.img"
    sources = {
        "root": image_source(image),
        "home": Source(path=home, format="raw", access="write"),
        "seed": Source(path=bench.directory / _SEED, format="raw", access="read-only"),
    }
    return guest_plan(
        instance,
        sources=sources,
        images=[image],
        address=record.address,
        console=bench.directory / "console.log",
        kvm=kvm,
    )


def _check_same(real: Sequence[str], plan: GuestPlan, *, seed: Path, record: GuestRecord) -> None:
    """Both arms must run the same QEMU line, but for where their files are."""
    places = {str(record.disks[0].path): str(_home(plan))}
    places |= {str(record.console): str(plan.console), str(seed): str(plan.console.parent / _SEED)}
    for theirs, mine in places.items():
        real = [word.replace(theirs, mine) for word in real]
    expected = command_line(plan)
    if real != expected:
        differences = sorted(set(real) ^ set(expected))
        raise BenchError(f"the two arms would not run the same QEMU line: {differences}")


def _command_of(pid: int) -> list[str]:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    return [word.decode() for word in words]


def _home(plan: GuestPlan) -> Path:
    return next(disk.path for disk in plan.disks if disk.access == "write")


async def bare_boot(bench: BootBench, plan: GuestPlan, *, number: int) -> Times:
    """Boot the guest by hand; cut its power when it has answered."""
    run = bench.directory / f"bare-{number}"
    run.mkdir()
    _home(plan).unlink(missing_ok=True)
    _home(plan).touch()
    os.truncate(_home(plan), _HOME_GIB * 2**30)
    plan.console.unlink(missing_ok=True)
    before, begun = bench.cluster.processor_seconds(), now()
    with (run / "qemu.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command_line(plan),
            cwd=run,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # As the hollow node does: the scheduler may share processors out by session.
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(_BOOT_LIMIT):
            spoke = await marker(plan.console)
            guest = processor_seconds(process.pid)
            await _ssh(bench, plan.address)
        times = {"marker": spoke - begun, "ssh": now() - begun}
        used = bench.cluster.processor_seconds() - before
        return {**times, _GUEST_CPU: guest, _PLANE_CPU: used}
    except TimeoutError as error:
        said = (run / "qemu.log").read_text().strip() or "nothing"
        raise BenchError(f"the bare guest did not answer; QEMU said {said}") from error
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


# ---- the operator's arm


async def _operated(bench: BootBench, name: str) -> Times:
    """Apply a machine and log in to it."""
    manifest = machine_manifest(name, keys=(bench.public_key,))
    apply = _kubectl(bench, "apply", "-f", "-", stdin=manifest)
    return await _until_answer(bench, name, change=apply)


async def _until_answer(bench: BootBench, name: str, *, change: Coroutine[Any, Any, None]) -> Times:
    """From `change`, which asks for it, to phase running and an answer over SSH."""
    timeline = bench.timeline
    before, begun = bench.cluster.processor_seconds(), timeline.begin(name)
    changing = asyncio.create_task(change)
    looking = asyncio.create_task(_look_at_guest(bench))
    try:
        await changing
        await timeline.until("phase running", lambda: "Machine running" in timeline.seen)
        await _ssh(bench, timeline.machine()["status"]["addresses"][0])
        answered = now()
        used = bench.cluster.processor_seconds() - before
        async with asyncio.timeout(10):
            guest = await looking
    finally:
        for task in (changing, looking):
            task.cancel()
        await asyncio.gather(changing, looking, return_exceptions=True)
    times = {name: at - begun for name, at in {**timeline.seen, "ssh": answered}.items()}
    return {**times, _GUEST_CPU: guest, _PLANE_CPU: used}


async def _look_at_guest(bench: BootBench) -> float:
    """Note when QEMU was started and when the guest spoke on its console; returns its processor seconds by then."""
    timeline = bench.timeline
    await timeline.until("the VMI", lambda: bool(timeline.instance()))
    uid = timeline.instance()["metadata"]["uid"]
    guest = None
    while guest is None:
        await asyncio.sleep(0.05)
        guest = next((guest for guest in bench.cluster.guests() if guest.uid == uid), None)
    assert guest.process is not None
    timeline.seen["QEMU started"] = started(guest.process)
    timeline.seen["marker"] = await marker(guest.console)
    return processor_seconds(guest.process.pid)


async def _extras(bench: BootBench, name: str, raw: dict[str, Any]) -> None:
    """One more login, directly and through the API server; then to sleep and awake again."""
    begun = now()
    await _ssh(bench, bench.timeline.machine()["status"]["addresses"][0])
    raw["direct ssh"].append(now() - begun)
    begun = now()
    await _run(*bench.cluster.command("ssh", name, "--", "true"), what="local ssh")
    raw["local ssh"].append(now() - begun)

    timeline = bench.timeline
    begun = timeline.begin(name)
    await _set_state(bench, name, "sleeping")
    await timeline.until("phase sleeping", lambda: "Machine sleeping" in timeline.seen)
    raw["sleep"].append(timeline.seen["Machine sleeping"] - begun)
    await timeline.until("VMI and pod to be gone", lambda: not timeline.runs())
    await asyncio.to_thread(bench.cluster.wait_quiet)
    wake = _set_state(bench, name, "running")
    raw["wake"].append(await _until_answer(bench, name, change=wake))


async def _set_state(bench: BootBench, name: str, state: str) -> None:
    patch = json.dumps({"spec": {"desired_state": state}})
    await _kubectl(bench, "patch", "machine", name, "--type=merge", "-p", patch)


async def _delete(bench: BootBench, name: str) -> None:
    await _kubectl(bench, "delete", "machine", name, "--wait=false")
    await bench.timeline.until(f"{name} to be gone", bench.timeline.gone)


# ---- programs


async def _ssh(bench: BootBench, address: str) -> None:
    """Run `true` in a guest, with the system's ssh; both arms come here only once the guest is said to listen."""
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "30",
        "IdentitiesOnly": "yes",
        "LogLevel": "ERROR",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
    }
    flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    port = ["-p", str(bench.cluster.settings.ssh_port), "-i", str(bench.key)]
    target = f"{LOGIN_USER}@{address}"
    await _run("ssh", "-F", "none", *flags, *port, target, "true", what=f"ssh {target}")


async def _kubectl(bench: BootBench, *words: str, stdin: str | None = None) -> None:
    program = str(bench.cluster.paths.bin / "kubectl")
    await _run(
        program, *words, what=f"kubectl {words[0]}", stdin=stdin, env=bench.cluster.environment()
    )


async def _run(
    *command: str, what: str, stdin: str | None = None, env: dict[str, str] | None = None
) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=env,
    )
    try:
        async with asyncio.timeout(60):
            output, _ = await process.communicate(stdin.encode() if stdin is not None else None)
    except TimeoutError as error:
        raise BenchError(f"{what} took more than a minute") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise BenchError(f"{what} failed ({process.returncode}): {output.decode().strip()}")


# ---- figures


def _figures(raw: dict[str, Any]) -> list[Figure]:
    bare = [times["ssh"] for times in raw["bare"]]
    operator = [times["ssh"] for times in raw["operator"]]
    ratios = [ours / theirs for ours, theirs in zip(operator, bare, strict=True)]
    wake = [times["ssh"] for times in raw["wake"]]
    return [
        measured("kubectl apply to SSH, as a multiple of the bare boot", ratios, "x", limit=_RATIO),
        measured("bare boot to SSH", bare, "s"),
        *_steps(raw["bare"], _BARE_STEPS),
        *_processor(raw["bare"]),
        measured("kubectl apply to SSH", operator, "s"),
        *_steps(raw["operator"], _OPERATOR_STEPS),
        *_processor(raw["operator"]),
        measured("wake (kubectl patch) to SSH", wake, "s"),
        *_steps(raw["wake"], _WAKE_STEPS),
        measured("kubectl patch to phase sleeping", raw["sleep"], "s"),
        measured("one command over ssh, to the loopback address", raw["direct ssh"], "s"),
        measured("one command over local ssh, through the API server", raw["local ssh"], "s"),
    ]


def _processor(runs: list[Times]) -> list[Figure]:
    """The seconds of one processor that were used: the same on an idle machine and on a busy one."""
    return [
        measured("  used by the guest until it spoke", [run[_GUEST_CPU] for run in runs], "cpu s"),
        measured("  used by the control plane", [run[_PLANE_CPU] for run in runs], "cpu s"),
    ]


def _steps(runs: list[Times], steps: Sequence[tuple[str, str]]) -> list[Figure]:
    """The time between one milestone and the next, where all runs have both."""
    found, before = [], [0.0] * len(runs)
    for milestone, words in steps:
        if all(milestone in run for run in runs):
            at = [run[milestone] for run in runs]
            gaps = [later - earlier for later, earlier in zip(at, before, strict=True)]
            found.append(measured(f"  {words}", gaps, "s"))
            before = at
    return found
