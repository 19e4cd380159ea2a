"""Artifacts: collected when a program has ended, downloaded by link, gone when they should be."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.types import Message

from machine_operator.gateway.artifacts.files import ArtifactFiles, FilesError
from machine_operator.gateway.dcs.artifact_models import ArtifactResponse
from machine_operator.kube.errors import ConfigurationError
from tests.support.asgi import Answer
from tests.support.executions import Node, Scene

MIB = 1024 * 1024
PAGE = "<script>alert(1)</script>"


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path)
    scene.blobs = f"file://{tmp_path}/blobs"
    yield scene
    await scene.world.close()


@pytest.fixture
async def node(scene: Scene) -> AsyncIterator[Node]:
    async with scene.node(artifact_limit_mib=2) as node:
        yield node


@pytest.fixture
async def machine(scene: Scene, node: Node) -> str:
    return await scene.machine(node)


async def left(scene: Scene, node: Node, machine: str, **files: bytes) -> Any:
    """An execution that has left these files."""
    scene.world.leaves = files
    return await node.ended(await node.post(machine, "leave"))


async def listed(node: Node, machine: str) -> list[Any]:
    answer = await node.call("GET", f"/v1/machines/{machine}/artifacts")
    assert answer.status == 200, answer.body
    return list(answer.json()["items"])


async def fetch(node: Node, url: str, method: str = "GET", **headers: str) -> Answer:
    """A download, by a client that stays until the end and has no key."""
    path = re.sub(r"^https?://[^/]+", "", url)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    scope = node.replica._scope(method, path, org=None, headers=named)
    outbox: list[Message] = []

    async def receive() -> Message:
        await asyncio.Future()
        return {}

    async def send(message: Message) -> None:
        outbox.append(message)

    await node.replica.app(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in outbox[1:])
    assert max(len(message.get("body", b"")) for message in outbox) <= MIB
    return Answer(outbox[0]["status"], Headers(raw=list(outbox[0]["headers"])), content)


def blobs(tmp_path: Path) -> list[bytes]:
    return [file.read_bytes() for file in (tmp_path / "blobs").rglob("*") if file.is_file()]


async def test_what_a_program_leaves(
    scene: Scene, node: Node, machine: str, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 5000
    ended = await left(scene, node, machine, **{"out/data.json": content, "empty": b""})
    names = {one["name"]: one["artifact_id"] for one in ended["artifacts"]}
    assert set(names) == {"out/data.json", "empty"}
    for name, expected in (("out/data.json", content), ("empty", b"")):
        path = f"/v1/machines/{machine}/artifacts/{names[name]}"
        found = (await node.call("GET", path)).json()
        ArtifactResponse.model_validate(found)
        assert re.fullmatch(r"art-[0-9a-f]{32}", found["artifact_id"])
        assert (found["machine_id"], found["execution_id"]) == (machine, ended["execution_id"])
        assert (found["size_bytes"], found["sha256"]) == (
            len(expected),
            hashlib.sha256(expected).hexdigest(),
        )
        answer = await fetch(node, found["download_url"])
        assert (answer.status, answer.body) == (200, expected)
        assert answer.headers["content-length"] == str(len(expected))
    assert {one["mime_type"] for one in await listed(node, machine)} == {
        "application/json",
        "application/octet-stream",
    }
    assert len(blobs(tmp_path)) == 2


async def test_a_download_can_do_nothing_in_our_name(
    scene: Scene, node: Node, machine: str
) -> None:
    name = 'a"\r\nX: y/e\\vil é.html'
    await left(scene, node, machine, **{name: PAGE.encode()})
    (found,) = await listed(node, machine)
    assert found["name"] == name
    headers = (await fetch(node, found["download_url"])).headers
    assert headers["content-disposition"] == (
        "attachment; filename=\"e_vil _.html\"; filename*=UTF-8''e%5Cvil%20%C3%A9.html"
    )
    assert headers["content-type"] == "text/html"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert "x" not in headers


async def test_parts_of_it(scene: Scene, node: Node, machine: str) -> None:
    content = b"0123456789" * 200_000
    await left(scene, node, machine, file=content[: 2 * MIB])
    (found,) = await listed(node, machine)
    content = content[: 2 * MIB]
    url, size = found["download_url"], len(content)
    whole = await fetch(node, url, "HEAD")
    etag = f'"{found["sha256"]}"'
    assert (whole.status, whole.body, whole.headers["etag"]) == (200, b"", etag)
    for asked, start, end in (
        ("0-9", 0, 10),
        (f"{MIB - 5}-{MIB + 5}", MIB - 5, MIB + 6),
        ("-7", size - 7, size),
    ):
        part = await fetch(node, url, range=f"bytes={asked}", if_range=etag)
        assert (part.status, part.body) == (206, content[start:end])
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
    beyond = await fetch(node, url, range=f"bytes={size}-")
    assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    changed = await fetch(node, url, range="bytes=0-9", if_range='"another"')
    assert (changed.status, len(changed.body)) == (200, size)
    assert (await fetch(node, url, if_none_match=etag)).status == 304


async def test_links_that_are_not_good(scene: Scene, node: Node, machine: str) -> None:
    await left(scene, node, machine, one=b"1", two=b"2")
    one, two = await listed(node, machine)
    token = one["download_url"].partition("token=")[2]
    base = f"/v1/artifacts/{two['artifact_id']}/content"
    for target in (base, f"{base}?token=", f"{base}?token={token}", f"{base}?token={'9' * 500}"):
        answer = await fetch(node, target)
        assert (answer.status, answer.headers["content-type"]) == (403, "application/problem+json")
        assert token not in answer.body.decode()
    now = int(token.partition(".")[0])
    stale = node.artifacts._tokens.sign("artifact", two["artifact_id"], seconds=-10)
    assert (await fetch(node, f"{base}?token={stale}")).status == 403
    assert now - scene.now().timestamp() <= 15 * 60 + 1


async def test_removed_it_is_gone_and_so_are_its_bytes(
    scene: Scene, node: Node, machine: str, tmp_path: Path
) -> None:
    await left(scene, node, machine, one=b"1", two=b"2")
    one, two = await listed(node, machine)
    path = f"/v1/machines/{machine}/artifacts/{one['artifact_id']}"
    answer = await node.call("DELETE", path, key="d")
    expected = {name: value for name, value in one.items() if name != "download_url"}
    assert (answer.status, answer.json()) == (200, expected)
    assert (await node.call("DELETE", path, key="d")).json() == expected
    assert (await node.call("DELETE", path, key="d2")).status == 404
    assert (await node.call("GET", path)).status == 404
    assert (await fetch(node, one["download_url"])).status == 404
    assert [found["artifact_id"] for found in await listed(node, machine)] == [two["artifact_id"]]
    assert len(blobs(tmp_path)) == 1


async def test_removed_with_its_execution(
    scene: Scene, node: Node, machine: str, tmp_path: Path
) -> None:
    ended = await left(scene, node, machine, one=b"1", two=b"2")
    assert (await node.delete(ended)).status == 200
    assert await listed(node, machine) == []
    assert blobs(tmp_path) == []


async def test_after_its_time_it_is_gone(
    scene: Scene, node: Node, machine: str, tmp_path: Path
) -> None:
    await left(scene, node, machine, one=b"1")
    (one,) = await listed(node, machine)
    scene.cluster.later_by(node.replica.gateway.settings.artifact_retention + 1)
    assert await listed(node, machine) == []
    path = f"/v1/machines/{machine}/artifacts/{one['artifact_id']}"
    assert (await node.call("GET", path)).status == 404
    assert len(blobs(tmp_path)) == 1
    assert await node.artifacts.sweep() == 1
    assert blobs(tmp_path) == []


async def test_what_is_too_large_or_too_much_is_told(
    scene: Scene, node: Node, machine: str, tmp_path: Path
) -> None:
    files = {f"f{number:03}": b"x" for number in range(101)} | {"f000": b"x" * (2 * MIB + 1)}
    ended = await left(scene, node, machine, **files)
    assert ended["status"] == "succeeded"
    assert len(ended["artifacts"]) == len(blobs(tmp_path)) == 99
    events = (await node.get(ended, "/events"))["items"]
    told = {e["error_code"]: e["error_message"] for e in events if "error_code" in e}
    assert set(told) == {"artifact_limit", "artifact_too_large"}
    assert "f000" in told["artifact_too_large"]
    assert [e["status"] for e in events][-1] == "succeeded"


async def test_one_that_grows_while_it_is_read_is_not_kept(
    scene: Scene, node: Node, machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def grown(*_: Any) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * MIB

    from tests.support.guests import FakeRunner  # noqa: PLC0415

    monkeypatch.setattr(FakeRunner, "read_artifact", grown)
    ended = await left(scene, node, machine, log=b"x")
    assert "artifacts" not in ended
    assert blobs(tmp_path) == []
    assert await listed(node, machine) == []


async def test_a_store_of_objects_that_does_not_work(
    scene: Scene, node: Node, machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node.artifacts.files._files, "open", full)
    ended = await left(scene, node, machine, one=b"1")
    assert ended["status"] == "succeeded"
    assert "artifacts" not in ended
    events = (await node.get(ended, "/events"))["items"]
    (told,) = [e for e in events if "error_code" in e]
    assert told["error_code"] == "artifact_not_stored"
    assert "space" not in told["error_message"]


async def test_an_object_that_is_lost_is_not_a_file_that_is_cut_short(
    scene: Scene, node: Node, machine: str, tmp_path: Path
) -> None:
    await left(scene, node, machine, one=b"12345")
    (one,) = await listed(node, machine)
    for file in (tmp_path / "blobs").rglob("art-*"):
        file.unlink()
    assert (await fetch(node, one["download_url"])).status == 503
    assert await node.artifacts.records.by_id(one["artifact_id"]) is not None


async def test_another_organisation_s_are_not_there(scene: Scene, node: Node, machine: str) -> None:
    ended = await left(scene, node, machine, one=b"1")
    (one,) = await listed(node, machine)
    for path in (
        f"/v1/machines/{machine}/artifacts",
        f"/v1/machines/{machine}/artifacts/{one['artifact_id']}",
        f"/v1/machines/{machine}/executions/{ended['execution_id']}/output",
    ):
        assert (await node.call("GET", path, org="other")).status == 404
        assert (await node.call("GET", path, org=None)).status == 401
    # Nor by way of another machine of one's own.
    second = await scene.machine(node)
    path = f"/v1/machines/{second}/artifacts/{one['artifact_id']}"
    assert (await node.call("GET", path)).status == 404


# ---- where the bytes are


@pytest.mark.parametrize("url", ["file://host/x", "s3:///x", "s3://b/x?acl=public", "ftp://x"])
def test_places_that_are_none(url: str) -> None:
    with pytest.raises(ConfigurationError, match="artifacts"):
        ArtifactFiles(url)


def test_a_bucket_without_its_package_is_a_sentence() -> None:
    try:
        import s3fs  # type: ignore[import-not-found]  # noqa: F401, PLC0415
    except ImportError:
        with pytest.raises(ConfigurationError, match="not installed") as caught:
            ArtifactFiles("s3://key:hidden@bucket/prefix")
        assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("kind", ["file", "memory"])
async def test_objects(kind: str, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/a dir" if kind == "file" else f"memory://{tmp_path.name}"
    files = ArtifactFiles(url)
    try:

        async def pieces() -> AsyncIterator[bytes]:
            yield b"ab"
            yield b"cdef"

        written = await files.write("art-1", pieces(), most=6)
        assert (written.size, written.sha256) == (6, hashlib.sha256(b"abcdef").hexdigest())
        assert [p async for p in files.read("art-1", start=1, end=4)] == [b"bcd"]
        with pytest.raises(FilesError):
            [p async for p in files.read("art-1", start=0, end=7)]
        await files.remove("art-1")
        await files.remove("art-1")
        with pytest.raises(FilesError):
            [p async for p in files.read("art-1", start=0, end=1)]
    finally:
        files.close()
