"""Boots both guests for real, with the plainest QEMU command line, and logs in with the real ssh."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from machine_operator.local.guest.cloud import ensure_cloud_guest
from machine_operator.local.guest.image import CONSOLE_MARKER, ensure_guest
from machine_operator.local.guest.seed_iso import write_seed
from machine_operator.local.guest.store import Image

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
    ),
]

MIB = 2**20
ADDRESS = "127.88.0.7"
HOST = "m-7f3a9c21"


@dataclass(frozen=True)
class Keys:
    """Two ways in: a user's key and a pinned host key, or certificates of two authorities."""

    directory: Path

    def text(self, name: str) -> str:
        return (self.directory / name).read_text()

    def seed(self, **more: Any) -> bytes:
        content = {
            "hostname": HOST,
            "fqdn": "m-7f3a9c21.machines.local",
            "users": [
                "default",
                {
                    "name": "machine",
                    "uid": 1000,
                    "shell": "/bin/bash",
                    "sudo": "ALL=(ALL) NOPASSWD:ALL",
                    "lock_passwd": True,
                    "ssh_authorized_keys": [self.text("user.pub")],
                },
            ],
            "ssh_deletekeys": True,
            "ssh_keys": {
                "ed25519_private": self.text("host"),
                "ed25519_public": self.text("host.pub"),
                "ed25519_certificate": self.text("host-cert.pub"),
            },
            "chpasswd": {"expire": False},
            "write_files": [
                {"path": "/etc/ssh/user-ca.pub", "content": self.text("user-ca.pub")},
                {
                    "path": "/etc/ssh/sshd_config.d/50-machine.conf",
                    "content": "TrustedUserCAKeys /etc/ssh/user-ca.pub\n",
                    "permissions": "0600",
                },
                {
                    "path": "/etc/plain",
                    "content": 'it\'s "plain" \\n $HOME\nté\n',
                    "permissions": "0640",
                },
                {
                    "path": "/etc/deep/encoded",
                    "content": base64.b64encode(b"bytes\0here").decode(),
                    "encoding": "b64",
                    "owner": "root:root",
                },
                {"path": "/etc/plain", "content": "more\n", "append": True},
            ],
            "bootcmd": [["sh", "-c", "echo early >> /run/order"]],
            "runcmd": ['echo "late $(id -u)" >> /run/order', ["touch", "/run/it's done"]],
            **more,
        }
        return b"#cloud-config\n" + json.dumps(content).encode() + b"\n"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    directory = tmp_path_factory.mktemp("keys")

    def keygen(*words: str) -> None:
        subprocess.run(["ssh-keygen", "-q", *words], cwd=directory, check=True)

    for name in ("host", "host-ca", "user", "visitor", "user-ca"):
        keygen("-t", "ed25519", "-N", "", "-C", name, "-f", name)
    keygen("-s", "host-ca", "-h", "-I", "host", "-n", HOST, "-V", "-1h:+1h", "host.pub")
    keygen("-s", "user-ca", "-I", "visitor", "-n", "machine", "-V", "-1h:+1h", "visitor.pub")
    (directory / "pinned").write_text(f"{HOST} {(directory / 'host.pub').read_text()}")
    authority = (directory / "host-ca.pub").read_text()
    (directory / "authority").write_text(f"@cert-authority {HOST} {authority}")
    return Keys(directory)


@pytest.fixture(scope="module")
def cache() -> Path:
    default = Path.home() / ".cache" / "machine-operator"
    return Path(os.environ.get("MACHINE_OPERATOR_CACHE", default))


class Guest:
    """A running QEMU process: its console, its SSH port and its QMP socket."""

    def __init__(
        self, process: subprocess.Popen[bytes], *, directory: Path, port: int, keys: Keys
    ) -> None:
        self._process = process
        self._directory = directory
        self._port = port
        self._keys = keys
        self._started = time.monotonic()

    def console(self) -> str:
        path = self._directory / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, what: str, condition: Callable[[], bool], *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            ended = self._process.poll()
            late = time.monotonic() > deadline
            if ended is not None or late:
                state = f"after {seconds} s" if late else f"when QEMU ended with {ended}"
                pytest.fail(f"no {what} {state}; the console:\n{self.console()[-3000:]}")
            time.sleep(0.05)

    def wait_for_marker(self, *, seconds: float = 90) -> float:
        self.wait_for("console marker", lambda: CONSOLE_MARKER in self.console(), seconds=seconds)
        return time.monotonic() - self._started

    def ssh(
        self, command: str, *, seconds: float = 30, identity: str = "user", known: str = "pinned"
    ) -> subprocess.CompletedProcess[str]:
        options = {
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": self._keys.directory / known,
            "HostKeyAlias": HOST,
            "IdentitiesOnly": "yes",
            "IdentityFile": self._keys.directory / identity,
            "BatchMode": "yes",
            "ConnectTimeout": "20",
        }
        argv = ["ssh", "-F", "none", "-p", str(self._port)]
        argv += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return subprocess.run(
            [*argv, f"machine@{ADDRESS}", command],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def run(self, command: str) -> str:
        done = self.ssh(command)
        assert done.returncode == 0, f"{command!r}: {done.stderr}\n{self.console()[-2000:]}"
        return done.stdout

    def assert_certificates_work(self) -> None:
        done = self.ssh("id -un", identity="visitor", known="authority")
        assert (done.stdout, done.returncode) == ("machine\n", 0), done.stderr

    def qmp(self, command: str, **arguments: Any) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self._directory / "qmp"))
            stream = connection.makefile("rw")
            for request in (
                {"execute": "qmp_capabilities"},
                {"execute": command, "arguments": arguments},
            ):
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                while "return" not in (answer := json.loads(stream.readline())):
                    assert "error" not in answer, answer
            stream.close()

    def power_off(self, *, seconds: float = 30) -> float:
        start = time.monotonic()
        self.qmp("system_powerdown")
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(
                f"still running {seconds} s after the power button; the console:\n{self.console()[-3000:]}"
            )
        assert code == 0, self.console()[-3000:]
        return time.monotonic() - start


@contextmanager
def boot(
    image: Image,
    *,
    directory: Path,
    keys: Keys,
    seed: bytes,
    home: Path,
    guest_port: int = 22,
    memory: int = 256,
) -> Iterator[Guest]:
    directory.mkdir()
    write_seed(
        directory / "seed.iso",
        user_data=seed,
        meta_data=json.dumps({"instance-id": "i-1", "local-hostname": HOST}).encode(),
    )
    root = image.root
    if not image.root_readonly:
        root = directory / "root.qcow2"
        backing = ["-F", image.root_format, "-b", str(image.root)]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, str(root)], check=True)
    with socket.create_server((ADDRESS, 0)) as probe:
        port = probe.getsockname()[1]
    drives = [
        f"id=root,file={root},format={'raw' if image.root_readonly else 'qcow2'}"
        + (",readonly=on" if image.root_readonly else ""),
        f"id=home,file={home},format=raw",
        f"id=seed,file={directory / 'seed.iso'},format=raw,readonly=on",
    ]
    argv = [
        "qemu-system-x86_64",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-M",
        "q35",
    ]
    argv += f"-accel tcg,thread=multi,tb-size=64 -cpu max -smp 1 -m {memory}".split()
    argv += [
        "-kernel",
        str(image.kernel),
        "-initrd",
        str(image.initrd),
        "-append",
        image.append or "",
    ]
    argv += ["-serial", f"file:{directory / 'console.log'}"]
    argv += ["-qmp", f"unix:{directory / 'qmp'},server=on,wait=off"]
    for drive in drives:
        name = drive.partition(",")[0].partition("=")[2]
        argv += ["-drive", f"if=none,{drive}"]
        argv += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    argv += ["-netdev", f"user,id=n0,hostfwd=tcp:{ADDRESS}:{port}-:{guest_port}"]
    argv += ["-device", "virtio-net-pci,netdev=n0,romfile="]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        yield Guest(process, directory=directory, port=port, keys=keys)
    finally:
        process.kill()
        process.wait()


def blank_disk(path: Path, *, mib: int) -> Path:
    with path.open("wb") as file:
        file.truncate(mib * MIB)
    return path


def features(disk: Path) -> str:
    """Of the file system on it."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    dumpe2fs = shutil.which("dumpe2fs", path=path)
    assert dumpe2fs is not None
    done = subprocess.run([dumpe2fs, "-h", str(disk)], capture_output=True, text=True, check=True)
    return next(line for line in done.stdout.splitlines() if line.startswith("Filesystem features"))


def test_small_guest_logs_in_keeps_its_home_grows_it_and_powers_off(
    cache: Path, keys: Keys, tmp_path: Path
) -> None:
    image = ensure_guest(cache, progress=print)
    home = blank_disk(tmp_path / "home.raw", mib=256)

    with boot(image, directory=tmp_path / "first", keys=keys, seed=keys.seed(), home=home) as guest:
        print(f"first boot: marker after {guest.wait_for_marker():.2f} s")
        assert guest.run(
            "id -un; uname -n; pwd; stat -c %U .; echo $SHELL $LANG; sudo id -u"
        ).split() == [*("machine", HOST, "/home/machine", "machine", "/bin/bash", "C.UTF-8", "0")]
        assert guest.run("sudo cat /etc/plain") == 'it\'s "plain" \\n $HOME\nté\nmore\n'
        assert guest.run("stat -c %a /etc/plain; wc -c < /etc/deep/encoded").split() == [
            "640",
            "10",
        ]
        guest.wait_for(
            "end of runcmd", lambda: guest.ssh('ls "/run/it\'s done"').returncode == 0, seconds=20
        )
        assert guest.run("cat /run/order").split("\n")[:2] == ["early", "late 0"]
        guest.assert_certificates_work()
        guest.run("echo kept > note && sudo touch /etc/forgotten")

        guest.qmp("block_resize", device="home", size=512 * MIB)
        size = "df -m --output=size /home/machine | tail -n 1"
        guest.wait_for("growth of the home", lambda: int(guest.run(size)) > 400, seconds=30)
        print(f"power-off took {guest.power_off():.2f} s")
        assert "going down for poweroff" in guest.console()

    assert "needs_recovery" not in features(home), "it was not unmounted"
    assert home.stat().st_size == 512 * MIB
    elsewhere = {"path": "/etc/ssh/sshd_config.d/50-port.conf", "content": "Port 2222\n"}
    again = keys.seed(write_files=[elsewhere])
    with boot(
        image, directory=tmp_path / "again", keys=keys, seed=again, home=home, guest_port=2222
    ) as guest:
        print(f"second boot: marker after {guest.wait_for_marker():.2f} s")
        assert f"{CONSOLE_MARKER} 2222 " in guest.console()
        assert guest.run(
            "sudo cat /root/note; ls /etc/forgotten 2>/dev/null || echo gone"
        ).split() == [
            "kept",
            "gone",
        ]
        assert int(guest.run(size)) > 400
        guest.power_off()


@pytest.mark.timeout(900)
@pytest.mark.skipif(os.geteuid() != 0, reason="mmdebstrap makes the image as root")
def test_a_stock_cloud_guest_takes_the_same_seed(cache: Path, keys: Keys, tmp_path: Path) -> None:
    image = ensure_cloud_guest(cache, progress=print)
    home = blank_disk(tmp_path / "home.raw", mib=64)
    with boot(
        image, directory=tmp_path / "cloud", keys=keys, seed=keys.seed(), home=home, memory=512
    ) as guest:
        started = time.monotonic()
        finished = re.compile(r"Cloud-init v\. \S+ finished at")
        guest.wait_for(
            "end of cloud-init", lambda: finished.search(guest.console()) is not None, seconds=300
        )
        print(f"cloud-init finished after {time.monotonic() - started:.1f} s")
        assert "Datasource DataSourceNoCloud" in guest.console()
        assert guest.run("id -un; uname -n; sudo id -u").split() == ["machine", HOST, "0"]
        assert guest.run("sudo cat /etc/plain") == 'it\'s "plain" \\n $HOME\nté\nmore\n'
        guest.assert_certificates_work()
        guest.power_off(seconds=60)
