"""The lock between processes: exclusion, who holds it, and what a killed holder leaves."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from machine_operator.local.locks import LockTimeoutError, exclusive

HOLDER = """
import sys
from pathlib import Path
from machine_operator.local.locks import exclusive
with exclusive(Path(sys.argv[1]), on_wait=print, timeout=10):
    print("held", flush=True)
    sys.stdin.read()
"""


def refuse_to_wait(text: str) -> None:
    raise AssertionError(f"nobody should hold the lock, but: {text}")


def test_free_lock_is_taken_without_a_word_and_makes_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lock"
    for _ in range(2):
        with exclusive(path, on_wait=refuse_to_wait, timeout=0):
            assert path.read_text() == f"{os.getpid()}\n"
    assert path.read_text() == ""


def test_waiter_hears_who_holds_it_and_gets_it_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    heard: list[str] = []
    waiting, order = threading.Event(), list[str]()

    def on_wait(text: str) -> None:
        heard.append(text)
        waiting.set()

    def wait_for_it() -> None:
        with exclusive(path, on_wait=on_wait, timeout=30):
            order.append("waiter")

    thread = threading.Thread(target=wait_for_it)
    with exclusive(path, on_wait=refuse_to_wait, timeout=0):
        thread.start()
        assert waiting.wait(30), "the waiter never said that it waits"
        order.append("holder")
    thread.join(30)
    assert order == ["holder", "waiter"]
    assert f"process {os.getpid()}" in heard[0]
    assert str(path) in heard[0]


def test_timeout_names_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with exclusive(path, on_wait=refuse_to_wait, timeout=0):
        with (
            pytest.raises(LockTimeoutError, match=f"held by process {os.getpid()} after"),
            exclusive(path, on_wait=lambda _: None, timeout=0),
        ):
            raise AssertionError("two hold the lock")
        assert path.read_text() == f"{os.getpid()}\n", "the loser must not touch the pid"


def test_lock_is_free_after_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(KeyError), exclusive(path, on_wait=refuse_to_wait, timeout=0):
        raise KeyError
    with exclusive(path, on_wait=refuse_to_wait, timeout=0):
        pass


def test_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(LockTimeoutError, match=f"process {holder.pid}"),
            exclusive(path, on_wait=lambda _: None, timeout=0),
        ):
            pass
        holder.kill()
    with exclusive(path, on_wait=refuse_to_wait, timeout=0):
        pass
