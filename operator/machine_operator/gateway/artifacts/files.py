"""Where the bytes of artifacts are: a directory, a bucket, or memory, all by way of fsspec.

fsspec blocks, so its calls are made in threads of our own, a few at a time and a piece at a time. Names of objects are
made here; what people call their files never becomes a part of a path.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import fsspec  # type: ignore[import-untyped]

from machine_operator.kube.errors import ConfigurationError

__all__ = ["ArtifactFiles", "FilesError", "TooLarge", "Written"]

_THREADS: Final = 8
_PIECE: Final = 1024 * 1024
_LINGER: Final = 5.0

T = TypeVar("T")


class FilesError(Exception):
    """The objects cannot be reached, or one is not there."""


class TooLarge(Exception):
    """A file is larger than it may be."""


@dataclass(frozen=True, slots=True)
class Written:
    """What has been written: bytes, and their SHA-256 in hex."""

    size: int
    sha256: str


class ArtifactFiles:
    """The objects of one store.

    Args:
        url: `file:///DIRECTORY`, `memory://NAME`, or `s3://[KEY:SECRET@]BUCKET/PREFIX[?endpoint_url=…&region=…]`.

    Raises:
        ConfigurationError: there is no such store, or what it needs is not installed.
    """

    def __init__(self, url: str) -> None:
        scheme, options, root = _parts(url)
        try:
            self._files: Any = fsspec.filesystem(scheme, **options)
        except ImportError as error:
            raise ConfigurationError(
                f"artifacts: {scheme}:// needs a Python package that is not installed ({error.name or 's3fs'}): "
                "install machine-operator[s3], or keep artifacts in a directory"
            ) from error
        self._root = root
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="artifacts")

    def close(self) -> None:
        """End the threads once they have done what they are at; nothing works after that."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def write(self, key: str, pieces: AsyncIterator[bytes], *, most: int) -> Written:
        """Write an object.

        Raises:
            TooLarge: there is more than `most` bytes of it; nothing of it stays.
            FilesError: it cannot be written.
        """
        size, digest = 0, hashlib.sha256()
        try:
            file = await self._call(self._files.open, self._path(key), "wb")
            try:
                async for piece in pieces:
                    size += _within(len(piece), most - size)
                    digest.update(piece)
                    await self._call(file.write, piece)
            except BaseException:
                with suppress(FilesError):  # which would hide what has happened
                    await self._call(file.close)
                raise
            await self._call(file.close)
        except TooLarge:
            await self.remove(key)
            raise
        return Written(size, digest.hexdigest())

    async def read(self, key: str, *, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`, in pieces.

        Raises:
            FilesError: it is not there, or is shorter than that.
        """
        while start < end:
            stop = min(start + _PIECE, end)
            # By name: file systems have parameters of their own between them.
            fetch = partial(self._files.cat_file, self._path(key), start=start, end=stop)
            piece: bytes = await self._call(fetch)
            if not piece:
                raise FilesError(f"object {key} ends at byte {start}")
            yield piece
            start += len(piece)

    async def remove(self, key: str) -> None:
        """Remove an object, if it is there.

        Raises:
            FilesError: it cannot be removed.
        """
        await self._call(_remove, self._files, self._path(key))

    def _path(self, key: str) -> str:
        # A directory with a million files in it is slow in some file systems.
        return f"{self._root}/{key[-2:]}/{key}"

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        except RuntimeError as error:
            raise FilesError(str(error)) from error  # they are closed
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # A thread cannot be ended: nobody may touch the file while it is at it.
            await asyncio.wait([future], timeout=_LINGER)
            raise
        except FilesError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise FilesError(f"{type(error).__name__}: {error}") from error


def _within(length: int, room: int) -> int:
    if length > room:
        raise TooLarge
    return length


def _remove(files: Any, path: str) -> None:
    with suppress(FileNotFoundError):
        files.rm_file(path)


def _parts(url: str) -> tuple[str, dict[str, Any], str]:
    """Scheme, the options of its file system, and where in it everything is."""
    parts = urlsplit(url)
    options: dict[str, Any] = {"skip_instance_cache": True}
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ConfigurationError("artifacts: a file:// URL has three slashes and names no host")
        return "file", options | {"auto_mkdir": True}, unquote(parts.path).rstrip("/")
    place = f"{parts.hostname or ''}{parts.path}".rstrip("/")
    if parts.scheme == "memory":
        return "memory", options, f"/{place}"
    if parts.scheme != "s3" or not parts.hostname:
        raise ConfigurationError("artifacts: use a URL of file://, memory:// or s3://BUCKET")
    if parts.username:
        options |= {"key": unquote(parts.username), "secret": unquote(parts.password or "")}
    asked = dict(parse_qsl(parts.query))
    if unknown := set(asked) - {"endpoint_url", "region"}:
        raise ConfigurationError(
            f"artifacts: the URL has {', '.join(sorted(unknown))}, but only endpoint_url and region are known"
        )
    if "endpoint_url" in asked:
        options["endpoint_url"] = asked["endpoint_url"]
    if "region" in asked:
        options["client_kwargs"] = {"region_name": asked["region"]}
    return "s3", options | {"use_listings_cache": False}, place
