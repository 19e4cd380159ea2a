"""The seed: what makes a stock cloud image this machine.

NoCloud user data, written as `#cloud-config` with a JSON body, which cloud-init accepts and a small guest can parse.
The root disk is new at each start, so everything here is applied at each boot and must not mind that:
the host key comes from the seed (it stays the same after every wake), the home disk is formatted only where it is
blank, and authorized keys lie outside of it, so that a key removed from the spec is gone at the next start.

The gateway comes in as root, with a certificate of the user authority that is for this VM alone; commands begin in
/root, which is therefore the home disk too. It knows the machine by the certificate of its host key.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from machine_operator.api.machine import Machine
from machine_operator.kubevirt.digest import digest
from machine_operator.kubevirt.names import APPLIED_ANNOTATION, child_labels, child_names
from machine_operator.kubevirt.scripts import guest_scripts
from machine_operator.kubevirt.settings import MachineDefaults
from machine_operator.kubevirt.vm import HOME_SERIAL, owner_reference

__all__ = [
    "HOST_PRIVATE_KEY",
    "HOST_PUBLIC_KEY",
    "LOGIN_USER",
    "HostKey",
    "build_seed",
    "seed_digest",
]

Object = dict[str, Any]

LOGIN_USER = "machine"
HOME = f"/home/{LOGIN_USER}"
HOST_PRIVATE_KEY = "ssh-host-key"
HOST_PUBLIC_KEY = "ssh-host-key.pub"

_DEVICE = f"/dev/disk/by-id/virtio-{HOME_SERIAL}"
_KEYS = "/etc/ssh/authorized_keys.d"
_USER_CA = "/etc/ssh/machine_user_ca.pub"
_PRINCIPALS = "/etc/ssh/machine_principals"
_HOST_CERTIFICATE = "/etc/ssh/machine_host_cert.pub"

# Of two settings sshd takes the first one that it reads; Subsystem is not here, which it refuses to read twice.
_SSHD = (
    f"AuthorizedKeysFile {_KEYS}/%u .ssh/authorized_keys",
    # Not cloud-init's ssh_pwauth, which restarts sshd after people have begun to log in.
    "PasswordAuthentication no",
    "PermitRootLogin prohibit-password",
    # One connection of the gateway carries all that goes on in the machine.
    "MaxSessions 1000",
    "MaxStartups 100:30:200",
    "AllowTcpForwarding yes",
    "Compression no",
    # A gateway that is gone without a word is noticed within a minute.
    "ClientAliveInterval 15",
    "ClientAliveCountMax 4",
    "AcceptEnv LANG LC_* TERM COLORTERM NO_COLOR",
)


@dataclass(frozen=True, slots=True)
class HostKey:
    """The machine's SSH host key (ed25519): OpenSSH private form, and the one-line public form.

    `certificate` is the host authority's for it, one line, for the name of the VM; "" where there is no authority.
    """

    private: str = field(repr=False)
    public: str
    certificate: str = ""


def seed_digest(machine: Machine, defaults: MachineDefaults) -> str:
    """Fingerprint of the seed as it should be.

    Apart from the host key, which never changes, and its certificate, which is another one whenever it is made:
    it is what the authority's key says.
    """
    authority = defaults.host_authority.public if defaults.host_authority else ""
    user_data = _user_data(machine, defaults, HostKey(private="", public=""))
    return digest([user_data, _labels(machine), authority])


def build_seed(machine: Machine, defaults: MachineDefaults, key: HostKey) -> Object:
    """The Secret as the operator applies it. It takes effect at the next start of the machine."""
    config = _user_data(machine, defaults, key)
    return {
        "metadata": {
            "name": child_names(machine.metadata.uid).seed,
            "namespace": machine.metadata.namespace,
            "labels": _labels(machine),
            "annotations": {APPLIED_ANNOTATION: seed_digest(machine, defaults)},
            "ownerReferences": [owner_reference(machine)],
        },
        "type": "Opaque",
        # Not stringData: server-side apply does not track what that turns into.
        "data": {
            name: base64.b64encode(text.encode()).decode()
            for name, text in {
                "userdata": "#cloud-config\n" + json.dumps(config, sort_keys=True) + "\n",
                HOST_PRIVATE_KEY: key.private,
                HOST_PUBLIC_KEY: key.public,
            }.items()
        },
    }


def _labels(machine: Machine) -> dict[str, str]:
    return child_labels(uid=machine.metadata.uid, machine=machine.metadata.name)


def _user_data(machine: Machine, defaults: MachineDefaults, key: HostKey) -> Object:
    return {
        "hostname": machine.metadata.name,
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": key.private, "ed25519_public": key.public},
        "users": [
            {
                "name": LOGIN_USER,
                "uid": 1000,
                "gecos": "Machine",
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": True,
            }
        ],
        "bootcmd": [["sh", "-c", _MOUNT_HOME], ["sh", "-c", _NO_PENALTIES]],
        "write_files": _files(machine, defaults, key),
    }


def _files(machine: Machine, defaults: MachineDefaults, key: HostKey) -> list[Object]:
    sshd = list(_SSHD)
    files = [
        _file(f"{_KEYS}/{LOGIN_USER}", "".join(f"{k}\n" for k in machine.spec.ssh_authorized_keys)),
        _file("/var/lib/cloud/scripts/per-boot/machine-home", _CARE_FOR_HOME, mode="0755"),
        *(_file(script.path, script.content, mode="0755") for script in guest_scripts()),
    ]
    if defaults.ssh_port != 22:
        sshd.append(f"Port {defaults.ssh_port}")
    if defaults.ssh_user_ca:
        # A certificate for another machine is none for this one, whoever the user is.
        sshd += [f"TrustedUserCAKeys {_USER_CA}", f"AuthorizedPrincipalsFile {_PRINCIPALS}"]
        files.append(_file(_USER_CA, defaults.ssh_user_ca.strip() + "\n"))
        files.append(_file(_PRINCIPALS, child_names(machine.metadata.uid).vm + "\n"))
    if key.certificate:
        sshd.append(f"HostCertificate {_HOST_CERTIFICATE}")
        files.append(_file(_HOST_CERTIFICATE, key.certificate.strip() + "\n"))
    # Hence the early name.
    files.append(_file("/etc/ssh/sshd_config.d/10-machine.conf", "\n".join(sshd) + "\n"))
    return files


def _file(path: str, content: str, *, mode: str = "0644") -> Object:
    return {"path": path, "content": content, "permissions": mode}


# These scripts are for guests with systemd; the small guest of local mode cares for its home disk by itself.

# Before users are made, or their home would be hidden by the mount. cloud-init's own fs_setup is not used: where a
# file system has another label than the one asked for, it formats the disk, whatever `overwrite` says.
# Where there is no such disk, /root can only be read: what somebody wrote there would be lost unnoticed.
_MOUNT_HOME = f"""
set -eu
command -v systemctl >/dev/null || exit 0
trap 'mountpoint -q /root || mount -t tmpfs -o ro tmpfs /root' EXIT
if ! mountpoint -q {HOME}; then
  udevadm settle || true
  [ -b {_DEVICE} ] || {{ echo "machine: there is no home disk {_DEVICE}" >&2; exit 1; }}
  if [ "$(head -c 1048576 {_DEVICE} | tr -d '\\0' | wc -c)" -eq 0 ]; then
    mkfs.ext4 -q -m 0 -L home {_DEVICE}
  else
    e2fsck -p {_DEVICE} || [ $? -le 2 ]
  fi
  mkdir -p {HOME}
  mount -o noatime {_DEVICE} {HOME}
fi
mountpoint -q /root || mount --bind {HOME} /root
""".strip()

# From OpenSSH 9.8 on, failed logins shut out their source for minutes. All that comes through KubeVirt has the same
# source, so one stranger's attempts would shut out the gateway. An older sshd does not start with the setting.
_NO_PENALTIES = """
command -v systemctl >/dev/null || exit 0
sshd=$(PATH=$PATH:/usr/sbin:/sbin command -v sshd) || exit 0
"$sshd" -G -o PerSourcePenalties=no >/dev/null 2>&1 || exit 0
echo PerSourcePenalties no >/etc/ssh/sshd_config.d/10-machine-penalties.conf
""".strip()

# At the end of each boot: the home belongs to its user from the first time on, and grows with its disk from now on.
_CARE_FOR_HOME = f"""#!/bin/sh
set -eu
command -v systemd-run >/dev/null || exit 0
if [ "$(stat -c %U {HOME})" = root ]; then
  cp -rT /etc/skel {HOME}
  chown -R {LOGIN_USER}: {HOME}
fi
systemd-run --quiet --unit=machine-home-growth sh -c '
  seen=0
  while :; do
    size=$(blockdev --getsize64 {_DEVICE})
    [ "$size" = "$seen" ] || resize2fs {_DEVICE}
    seen=$size
    sleep 3
  done'
"""
