"""The operator's seed in a guest's place: applied to a file system of its own, and served by a real sshd.

The small guest's own scripts apply it, at the real paths, in namespaces that end with the test; the stock ssh client
then logs in. sshd judges owners and modes of all the files as it does in a guest.
"""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from machine_operator.controller.hostkeys import certified, new_host_key
from machine_operator.kubevirt import seed
from machine_operator.kubevirt.authority import Authority
from machine_operator.kubevirt.names import child_names
from machine_operator.kubevirt.scripts import guest_scripts
from machine_operator.kubevirt.seed import build_seed
from machine_operator.kubevirt.settings import MachineDefaults
from machine_operator.local.guest.recipe import data_files
from tests.support.machines import a_machine

NAMESPACES = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]

# Of /etc a copy; of the rest what the seed and sshd write to. /root is the one that is here: nothing may be written
# there unless something is mounted on it. /dev/disk has no home disk.
ROOT = """
set -eu
mount -t tmpfs tmpfs "$OWN"
cp -a /etc "$OWN/etc"
mount --bind "$OWN/etc" /etc
for place in /run /home /var/lib /usr/local/lib; do mount -t tmpfs -o mode=755 tmpfs $place; done
rm -rf /etc/ssh/*
sed -i '/^root:/!{/^sshd:/!d}' /etc/passwd
echo 'root:*:19000:0:99999:7:::' >/etc/shadow
mkdir -p /run/sshd /etc/ssh/sshd_config.d /etc/sudoers.d /home/machine
"""

APPLY = """
. "$HERE/seed.sh"
say() { echo "$*" >&2; }
mkdir -p /run/machine
SEED=$HERE/seed
mkdir "$SEED" && cp "$HERE/user-data" "$SEED/user-data" && : >"$SEED/meta-data"
read_seed
seed_apply
place_keys
chown 1000:1000 /home/machine
mount --bind /home/machine /root
cp "$HERE/sshd_config" /etc/ssh/sshd_config
# The last of them, as it adds nothing that sshd has not been told before.
echo ListenAddress 127.0.0.1 >>/etc/ssh/sshd_config
exec /usr/sbin/sshd -D -e
"""


def _possible() -> bool:
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "busybox", "jq"))):
        return False
    return subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(
    not _possible(), reason="root, namespaces, busybox and jq are needed"
)


def user_data(machine: Any, defaults: MachineDefaults, host: Authority) -> bytes:
    key = certified(new_host_key(), vm=child_names(machine.metadata.uid).vm, authority=host)
    return base64.b64decode(build_seed(machine, defaults, key)["data"]["userdata"])


@dataclass(frozen=True)
class Guest:
    """A running sshd, and a directory for the client's files."""

    port: int
    directory: Path
    user_authority: Authority

    def ssh(
        self, command: str, *, user: str = "root", principal: str, alias: str, signer: Authority
    ) -> subprocess.CompletedProcess[str]:
        identity = self.directory / "identity"
        now = int(time.time())
        certificate = signer.certify_user(
            (self.directory / "identity.pub").read_text(),
            key_id="test",
            principals=[principal],
            valid_after=now - 60,
            valid_before=now + 600,
            extensions=["permit-pty", "permit-port-forwarding"],
        )
        (self.directory / "identity-cert.pub").write_text(certificate + "\n")
        options = {
            "IdentityFile": str(identity),
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "UserKnownHostsFile": str(self.directory / "known_hosts"),
            "StrictHostKeyChecking": "yes",
            "HostKeyAlias": alias,
            "ConnectTimeout": "20",
            "SetEnv": "COLORTERM=truecolor",
        }
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        where = ["-p", str(self.port), f"{user}@127.0.0.1"]
        return subprocess.run(
            ["ssh", "-F", "none", *flags, *where, command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


MACHINE = a_machine()
VM = child_names(MACHINE.metadata.uid).vm
HOST, USER = Authority.generate(), Authority.generate()


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    directory = tmp_path_factory.mktemp("seed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    files = dict(data_files())
    scripts = "rootfs/usr/lib/machine"
    text = files[f"{scripts}/seed.sh"].decode()
    (directory / "seed.sh").write_text(text.replace("/usr/lib/machine", str(directory)))
    (directory / "seed.jq").write_bytes(files[f"{scripts}/seed.jq"])
    (directory / "sshd_config").write_bytes(files["rootfs/etc/ssh/sshd_config"])
    defaults = MachineDefaults(
        image="i", ssh_port=port, ssh_user_ca=USER.public, host_authority=HOST
    )
    (directory / "user-data").write_bytes(user_data(MACHINE, defaults, HOST))
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / "identity")]
    subprocess.run(keygen, check=True)
    (directory / "known_hosts").write_text(f"@cert-authority * {HOST.public}\n")
    (directory / "own").mkdir()
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*NAMESPACES, "busybox", "sh", "-c", ROOT + APPLY],
            env={**os.environ, "HERE": str(directory), "OWN": str(directory / "own")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _until_it_listens(process, port, log)
        yield Guest(port, directory, USER)
    finally:
        process.kill()
        process.wait()


def _until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def test_root_comes_in_and_is_at_home(guest: Guest) -> None:
    command = "id -un; pwd; stat -c %u .; echo kept >note; cat /home/machine/note; echo $COLORTERM"
    done = guest.ssh(command, principal=VM, alias=VM, signer=USER)
    assert done.stdout.split() == ["root", "/root", "1000", "kept", "truecolor"], done.stderr


def test_so_does_the_login_user(guest: Guest) -> None:
    done = guest.ssh("id -un; pwd", user="machine", principal=VM, alias=VM, signer=USER)
    assert done.stdout.split() == ["machine", "/home/machine"], done.stderr


@pytest.mark.parametrize("principal", ["m-other", "root", "machine"])
def test_a_certificate_for_anything_else_lets_nobody_in(guest: Guest, principal: str) -> None:
    for user in ("root", "machine"):
        done = guest.ssh("true", user=user, principal=principal, alias=VM, signer=USER)
        assert done.returncode == 255
        assert "Permission denied" in done.stderr


def test_nor_does_another_authoritys(guest: Guest) -> None:
    done = guest.ssh("true", principal=VM, alias=VM, signer=HOST)
    assert done.returncode == 255
    assert "Permission denied" in done.stderr


def test_it_is_no_other_machine(guest: Guest) -> None:
    done = guest.ssh("true", principal=VM, alias="m-other", signer=USER)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_the_programs_are_there(guest: Guest) -> None:
    paths = [script.path for script in guest_scripts()]
    assert paths
    tests = " && ".join(f"test -x {path}" for path in paths)
    done = guest.ssh(f"{tests} && cat {paths[0]}", principal=VM, alias=VM, signer=USER)
    assert done.returncode == 0, done.stderr
    assert done.stdout == guest_scripts()[0].content


def test_sshd_has_taken_the_settings(guest: Guest) -> None:
    done = guest.ssh("/usr/sbin/sshd -T", principal=VM, alias=VM, signer=USER)
    assert {
        "maxsessions 1000",
        "maxstartups 100:30:200",
        "clientaliveinterval 15",
        "clientalivecountmax 4",
        "compression no",
        "permitrootlogin without-password",
        "passwordauthentication no",
        "authorizedprincipalsfile /etc/ssh/machine_principals",
        "strictmodes yes",
    } <= set(done.stdout.splitlines()), done.stderr


# ---- guests with systemd

STUBS = """
mkdir -p "$OWN/bin"
printf '#!/bin/sh\\n' >"$OWN/bin/systemctl"
printf '#!/bin/sh\\n' >"$OWN/bin/udevadm"
chmod +x "$OWN/bin"/*
PATH=$OWN/bin:$PATH
"""


def boot(tmp_path: Path, before: str, command: str, after: str) -> list[str]:
    """What `after` says when the command of the seed's bootcmd was run in a guest's place."""
    script = f'{ROOT}{STUBS}{before}\nset +e\nsh -c "$COMMAND" 2>&1\necho "ended $?"\n{after}\n'
    done = subprocess.run(
        [*NAMESPACES, "sh", "-c", script],
        env={**os.environ, "OWN": str(tmp_path), "COMMAND": command},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_roots_home_is_the_home_disk(tmp_path: Path) -> None:
    before = "mount -t tmpfs home /home/machine\ntouch /home/machine/here"
    after = "ls /root\nfindmnt -n -o SOURCE /root"
    assert boot(tmp_path, before, seed._MOUNT_HOME, after) == ["ended 0", "here", "home"]
    # cloud-init may run it again in the same boot.
    again = f'{before}\nsh -c "$COMMAND"'
    after = "findmnt -n -l -o TARGET | grep -c -x /root"
    assert boot(tmp_path, again, seed._MOUNT_HOME, after) == ["ended 0", "1"]


def test_without_a_home_disk_nothing_can_be_written_to_be_lost(tmp_path: Path) -> None:
    found = boot(tmp_path, "", seed._MOUNT_HOME, "test -w /root || echo refused")
    assert found[0].startswith("machine: there is no home disk")
    assert found[1:] == ["ended 1", "refused"]


def test_a_guest_without_systemd_is_left_alone(tmp_path: Path) -> None:
    before = 'rm "$OWN/bin/systemctl"; mkdir "$OWN/usr"; ln -s $(command -v sh) "$OWN/usr/sh"; PATH=$OWN/usr'
    after = "/usr/bin/findmnt /root || echo untouched"
    assert boot(tmp_path, before, seed._MOUNT_HOME, after) == ["ended 0", "untouched"]


@pytest.mark.parametrize(("knows", "expected"), [(True, ["PerSourcePenalties no"]), (False, [])])
def test_penalties_are_off_where_sshd_knows_them(
    tmp_path: Path, knows: bool, expected: list[str]
) -> None:
    stub = f'printf \'#!/bin/sh\\n[ "$*" = "-G -o PerSourcePenalties=no" ] && exit {int(not knows)}\\nexit 9\\n\''
    before = f'{stub} >"$OWN/bin/sshd"; chmod +x "$OWN/bin/sshd"'
    after = "cat /etc/ssh/sshd_config.d/* 2>/dev/null; true"
    assert boot(tmp_path, before, seed._NO_PENALTIES, after) == ["ended 0", *expected]


def test_the_sshd_that_is_here_starts_with_what_is_written(tmp_path: Path) -> None:
    """An unknown setting would keep it from starting at all."""
    after = (
        "echo 'Include /etc/ssh/sshd_config.d/*.conf' >/etc/ssh/sshd_config; ssh-keygen -A >/dev/null; "
        "/usr/sbin/sshd -t && echo fine"
    )
    assert boot(tmp_path, "", seed._NO_PENALTIES, after) == ["ended 0", "fine"]
