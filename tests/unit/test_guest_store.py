"""The image store: names as directories, and replacement in one step."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine_operator.local.guest.errors import BrokenImage
from machine_operator.local.guest.store import ImageStore, Manifest, escape_name

NAMES = st.one_of(
    st.from_regex(
        r"[a-z0-9.-]{1,20}(/[a-z0-9._-]{1,20}){0,3}(:[\w.-]{1,20})?(@sha256:[0-9a-f]{64})?",
        fullmatch=True,
    ),
    st.text(min_size=1, max_size=300),
)


def add(store: ImageStore, name: str, *, version: str = "v1", content: str = "root") -> None:
    with store.lock(name, on_wait=lambda: None), store.workspace(name) as directory:
        (directory / "root.erofs").write_text(content)
        (directory / "vmlinux").write_text("kernel")
        manifest = Manifest(
            name=name,
            version=version,
            root="root.erofs",
            root_readonly=True,
            kernel="vmlinux",
            append="quiet",
        )
        store.add(manifest, files=directory)


@given(NAMES)
def test_an_escaped_name_is_one_visible_file_name(name: str) -> None:
    escaped = escape_name(name)
    assert "/" not in escaped
    assert "\0" not in escaped
    assert not escaped.startswith(".")
    assert 0 < len(escaped.encode()) <= 200


@given(NAMES, NAMES)
def test_different_names_never_share_a_directory(one: str, other: str) -> None:
    assert (escape_name(one) == escape_name(other)) == (one == other)


def test_an_empty_name_is_no_name() -> None:
    with pytest.raises(ValueError, match="cannot be empty"):
        escape_name("")


@pytest.mark.parametrize(
    "name",
    [
        "machine-guest:12",
        "registry.example.com/x/y:tag@sha256:" + "0123456789abcdef" * 4,
        "../escape",
        ".",
        "x" * 400,
        "with space/and%2Fpercent",
    ],
)
def test_what_is_added_is_found_under_its_name(tmp_path: Path, name: str) -> None:
    store = ImageStore(tmp_path)
    assert store.find(name) is None
    add(store, name)
    image = store.find(name)
    assert image is not None
    assert (image.name, image.version, image.append, image.initrd) == (name, "v1", "quiet", None)
    assert image.root.is_absolute()
    assert image.root.read_text() == "root"
    assert image.root.resolve().is_relative_to(tmp_path.resolve())
    assert store.names() == [name]


@given(st.lists(NAMES, unique=True, max_size=4))
def test_names_gives_back_every_name(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    names = [name for name in names if name.isprintable()]
    store = ImageStore(tmp_path_factory.mktemp("store"))
    for name in names:
        add(store, name)
    assert store.names() == sorted(names)


def test_a_missing_store_has_no_images(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "nowhere")
    assert store.find("machine-guest:12") is None
    assert store.names() == []


def test_a_replaced_version_stays_for_those_who_have_just_looked_it_up(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    add(store, "guest", version="v1", content="one")
    first = store.find("guest")
    add(store, "guest", version="v2", content="two")
    second = store.find("guest")
    assert first is not None
    assert second is not None
    assert (first.root.read_text(), second.root.read_text()) == ("one", "two")
    add(store, "guest", version="v2", content="three")
    assert not first.root.exists()
    assert second.root.read_text() == "two"


def test_the_file_has_the_fields_of_its_contract(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    add(store, "guest")
    content = json.loads((tmp_path / "guest/image.json").read_text())
    assert set(content) == {
        "name",
        "version",
        "root",
        "root_format",
        "root_readonly",
        "kernel",
        "append",
    }
    assert not Path(content["root"]).is_absolute()


def test_a_hand_written_image_needs_only_a_name_and_a_root(tmp_path: Path) -> None:
    (tmp_path / "mine%3A1").mkdir()
    (tmp_path / "mine%3A1/disk.qcow2").write_text("")
    (tmp_path / "mine%3A1/image.json").write_text(
        '{"name": "mine:1", "root": "disk.qcow2", "root_format": "qcow2", "root_readonly": false}'
    )
    image = ImageStore(tmp_path).find("mine:1")
    assert image is not None
    assert (image.root_format, image.kernel, image.root_readonly) == ("qcow2", None, False)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "cannot be read"),
        ('{"name": "guest"}', "cannot be read"),
        ('{"name": "guest", "root": "/etc/passwd"}', "below the image's own directory"),
        ('{"name": "guest", "root": "../other/root"}', "below the image's own directory"),
        ('{"name": "guest", "root": "absent"}', "has no absent"),
        ('{"name": "other", "root": "image.json"}', "is named 'other' inside"),
    ],
)
def test_a_broken_image_is_told_about_and_can_be_replaced(
    tmp_path: Path, text: str, complaint: str
) -> None:
    (tmp_path / "guest").mkdir()
    (tmp_path / "guest/image.json").write_text(text)
    store = ImageStore(tmp_path)
    with pytest.raises(BrokenImage, match=complaint):
        store.find("guest")
    assert "other" not in store.names()
    add(store, "guest")
    assert store.find("guest") is not None


def test_leftovers_of_a_killed_builder_go_when_the_lock_is_taken(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    add(store, "guest", version="v1")
    mine = tmp_path / ".building-guest-abc"
    others = tmp_path / ".building-other-abc"
    half = tmp_path / "guest/v2-half"
    for directory in (mine, others, half):
        directory.mkdir()
        (directory / "file").write_text("")
    add(store, "guest", version="v3")
    assert (mine.exists(), others.exists(), half.exists()) == (False, True, False)
    assert store.names() == ["guest"]


def test_the_second_of_two_waits_and_says_so(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    waiting, events = threading.Event(), []

    def second() -> None:
        with store.lock("guest", on_wait=waiting.set):
            events.append("second")

    thread = threading.Thread(target=second)
    with store.lock("guest", on_wait=lambda: events.append("first waited")):
        thread.start()
        assert waiting.wait(10), "the second never said that it waits"
        events.append("first")
    thread.join(10)
    assert events == ["first", "second"]


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    hold = (
        "import os, signal, sys; from pathlib import Path; from machine_operator.local.guest.store import ImageStore\n"
        "with ImageStore(Path(sys.argv[1])).lock('guest', on_wait=lambda: None): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", hold, tmp_path], check=False, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == -9
    with ImageStore(tmp_path).lock("guest", on_wait=lambda: pytest.fail("the lock is still held")):
        pass
