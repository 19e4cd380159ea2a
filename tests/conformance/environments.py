"""Virtual environments of the published clients: one for each lock file, made once and kept in the user's cache.

The directory is named by the lock's hash, so a changed lock means a new environment. It is made beside its place and
then renamed, so nobody ever sees half of one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from machine_operator.local.locks import exclusive
from machine_operator.local.paths import cache_directory

__all__ = ["CLIENTS", "client_python"]

CLIENTS = Path(__file__).parent / "clients"

_INSTALL_LIMIT = 300.0


def client_python(name: str) -> Path:
    """The interpreter of the environment that `clients/NAME.lock` describes; made where it is missing.

    Raises:
        AssertionError: it cannot be made; with what pip said.
    """
    lock = CLIENTS / f"{name}.lock"
    tag = ".".join(str(part) for part in sys.version_info[:2])
    digest = hashlib.sha256(lock.read_bytes() + tag.encode()).hexdigest()[:16]
    home = cache_directory() / "clients" / digest
    with exclusive(home.with_name(f"{digest}.lock"), on_wait=print, timeout=_INSTALL_LIMIT):
        if not home.exists():
            _make(home, lock)
    return home / "bin" / "python"


def _make(home: Path, lock: Path) -> None:
    draft = home.with_name(f"{home.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.parent.mkdir(parents=True, exist_ok=True)
    # Links to the interpreter's absolute place, and no scripts of its own are used: so it may be renamed.
    _run(sys.executable, "-m", "venv", str(draft))
    install = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
    _run(str(draft / "bin" / "python"), *install, "--require-hashes", "-r", str(lock))
    os.replace(draft, home)


def _run(*argv: str) -> None:
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=_INSTALL_LIMIT, cwd="/"
    )
    assert done.returncode == 0, f"{' '.join(argv)} failed:\n{done.stdout}{done.stderr}"
