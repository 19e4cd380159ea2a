"""A cluster with real guests of a user who is nobody: no root, no port below 1024."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine_operator.local.paths import cache_directory, cluster_paths
from machine_operator.local.processes import marked_processes
from tests.cluster.host import listeners
from tests.cluster.support import MINUTE, Cluster, Machine

USER = "nobody"
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, ("setpriv", "unshare"))),
        reason="only root can become somebody else (with setpriv and unshare of util-linux)",
    ),
]


@pytest.fixture
def home(qemu_cluster: Cluster) -> Iterator[Path]:
    """The user's home, with a cache of what root has built: as links, so that it costs nothing."""
    assert qemu_cluster.paths.data.exists(), "who else has built what is linked here?"
    with tempfile.TemporaryDirectory(prefix="home-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        cache = home / ".cache" / "machine-operator"
        for part in ("control-plane", "images/machine-guest%3A12"):
            shutil.copytree(cache_directory() / part, cache / part, copy_function=_link)
        who = pwd.getpwnam(USER)
        for directory, _, files in os.walk(home):
            os.chown(directory, who.pw_uid, who.pw_gid)
            for file in files:
                if file == "lock":
                    (Path(directory) / file).unlink()
        yield home


@pytest.fixture
def theirs(home: Path) -> Iterator[Cluster]:
    """The user's cluster."""
    data = home / ".local/share/machine-operator/default"
    cluster = Cluster(cluster_paths("default", data=data), prefix=become(home))
    try:
        yield cluster
    finally:
        cluster.local("down", "--purge")


def test_an_unprivileged_user_has_a_cluster_with_machines(theirs: Cluster) -> None:
    theirs.local("up", timeout=4 * MINUTE)
    settings = theirs.settings
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    assert settings.ssh_port == (22 if first <= 22 else 2222)

    machine = Machine(theirs, "default").apply().wait_ready(timeout=2 * MINUTE)
    said = machine.ssh("id -un; echo kept > note; cat note").stdout.split()
    assert said == ["machine", "kept"]
    owners = {
        Path(f"/proc/{record.pid}").stat().st_uid for record in marked_processes(theirs.paths.data)
    }
    assert owners == {pwd.getpwnam(USER).pw_uid}

    theirs.local("down")
    assert marked_processes(theirs.paths.data) == []
    assert listeners(settings) == []


def become(home: Path) -> tuple[str, ...]:
    """What runs the rest of an argv as the user.

    Python and the checkout may lie in a directory that only root may enter, such as /root. In a mount namespace of
    its own that directory is covered by an open one, which shows only what the user needs.
    """
    needed = {Path(sys.base_prefix), Path(sys.prefix), ROOT}
    lines = ["set -e"]
    for closed in {_closed(path) for path in needed} - {None}:
        inside = [path for path in needed if path.is_relative_to(str(closed))]
        stages = [home / f"stage-{path.name}-{n}" for n, path in enumerate(inside)]
        for path, stage in zip(inside, stages, strict=True):
            lines.append(shlex.join(["mkdir", "-p", str(stage)]))
            lines.append(shlex.join(["mount", "--bind", str(path), str(stage)]))
        lines.append(shlex.join(["mount", "-t", "tmpfs", "-o", "mode=755", "open", str(closed)]))
        for path, stage in zip(inside, stages, strict=True):
            lines.append(shlex.join(["mkdir", "-p", str(path)]))
            lines.append(shlex.join(["mount", "--bind", str(stage), str(path)]))
    who = pwd.getpwnam(USER)
    ids = [f"--reuid={who.pw_uid}", f"--regid={who.pw_gid}", "--clear-groups"]
    limits = ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    clean = ["env", "-i", f"HOME={home}", f"PATH={os.environ['PATH']}", "LANG=C.UTF-8"]
    lines.append(f'exec {shlex.join(["setpriv", *ids, *limits, *clean])} "$@"')
    return ("unshare", "--mount", "sh", "-c", "\n".join(lines), "sh")


def _closed(path: Path) -> Path | None:
    """The first directory on the way to `path` that others may not enter."""
    for directory in reversed([path, *path.parents]):
        if not directory.stat().st_mode & 0o001:
            return directory
    return None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
