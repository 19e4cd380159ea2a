"""What the operator's configuration says about every machine that it builds."""

from __future__ import annotations

from dataclasses import dataclass, field

from machine_operator.kubevirt.authority import Authority

__all__ = ["MachineDefaults"]


@dataclass(frozen=True, slots=True)
class MachineDefaults:
    """Settings of the installation.

    Attributes:
        image: the root image of machines that name none.
        ssh_port: where the guest's sshd listens.
        ssh_user_ca: public key (one line, OpenSSH form) of the authority whose certificates may log in; "" for none.
        host_authority: what signs the machines' host keys; None for nothing.
        grace_seconds: how long a guest may take to shut down before its power is cut.
    """

    image: str
    ssh_port: int = 22
    ssh_user_ca: str = ""
    host_authority: Authority | None = field(default=None, repr=False)
    grace_seconds: int = 30
