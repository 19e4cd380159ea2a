"""Artifacts in a bucket: our files by way of s3fs, as `pip install machine-operator[s3]` has it, at a server of S3.

Printed at the end: one JSON object with what was seen.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

sys.path.insert(0, str(Path(__file__).parents[3] / "operator"))

from machine_operator.gateway.artifacts.files import (
    ArtifactFiles,
    FilesError,
    TooLarge,
)

_BUCKET, _KEY, _SECRET = "machines", "testing", "test/ing+1"
# More than s3fs sends in one part.
_LARGE = bytes(range(256)) * 4096 * 60


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1024 * 1024):
        yield data[start : start + 1024 * 1024]


async def _story(files: ArtifactFiles, bucket: Any) -> dict[str, Any]:
    def keys() -> list[str]:
        return [one.key for one in bucket.objects.all()]

    small = await files.write("art-1", _pieces(b"abcdef"), most=6)
    large = await files.write("art-2", _pieces(_LARGE), most=len(_LARGE))
    there = keys()
    middle = b"".join([piece async for piece in files.read("art-1", start=1, end=4)])
    whole = hashlib.sha256()
    async for piece in files.read("art-2", start=0, end=len(_LARGE)):
        whole.update(piece)
    try:
        await files.write("art-3", _pieces(_LARGE), most=len(_LARGE) - 1)
        refused = False
    except TooLarge:
        refused = "art-3" not in " ".join(keys())
    await files.remove("art-1")
    await files.remove("art-1")
    try:
        missing = [piece async for piece in files.read("art-1", start=0, end=1)] != []
    except FilesError:
        missing = True
    return {
        "small": [small.size, small.sha256 == hashlib.sha256(b"abcdef").hexdigest()],
        "large": [large.size, large.sha256 == whole.hexdigest()],
        "there": there,
        "middle": middle.decode(),
        "too large": refused,
        "missing": missing,
        "left": keys(),
    }


async def _unreachable(port: int) -> str:
    files = ArtifactFiles(f"s3://{_KEY}:hidden@{_BUCKET}/x?endpoint_url=http://127.0.0.1:{port}")
    try:
        await files.write("art-1", _pieces(b"abc"), most=3)
    except FilesError as error:
        return str(error)
    finally:
        files.close()
    return "written"


def main() -> None:
    """Start the server, make the bucket, and go through the story."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        client = boto3.resource(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=_KEY,
            aws_secret_access_key=_SECRET,
        )
        bucket = client.create_bucket(Bucket=_BUCKET)
        files = ArtifactFiles(
            f"s3://{_KEY}:test%2Fing%2B1@{_BUCKET}/arti/facts?endpoint_url={url}&region=us-east-1"
        )
        try:
            seen = asyncio.run(_story(files, bucket))
        finally:
            files.close()
    finally:
        server.stop()
    print(json.dumps(seen | {"unreachable": asyncio.run(_unreachable(port))}))


if __name__ == "__main__":
    main()
