"""A directory of bootable images, found by the name that a VirtualMachine's containerDisk gives.

    STORE/<escaped name>/image.json         names the files of one version, relative to itself
    STORE/<escaped name>/<version>/…        the files
    STORE/.building-<escaped name>-…/       a version that is being made; under the image's lock a leftover
    STORE/.lock-<escaped name>              its lock file

A version becomes the image in one step, the rename of image.json, after all of its files are on the
disk; a crash at any time leaves the previous image or none. The version that was replaced stays
until the next replacement, for those who have just looked it up.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from machine_operator.local.guest.errors import BrokenImage

__all__ = ["Image", "ImageStore", "Manifest", "escape_name"]

_MANIFEST = "image.json"
_BUILDING = ".building-"
_LOCK = ".lock-"
# File names may have 255 bytes; the rest is for our prefixes and random suffixes.
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Image:
    """One bootable image; every path is absolute.

    Attributes:
        name: as in a containerDisk, e.g. "machine-guest:12".
        version: changes whenever the content does.
        root: the root disk; attach it read-only and shared if `root_readonly`, else below an overlay of one boot.
        root_format: what QEMU calls the disk's format.
        root_readonly: see `root`.
        kernel: started directly if present; else the disk is booted through the firmware.
        initrd: the kernel's initial RAM file system.
        append: the kernel's command line.
        firmware: a firmware file instead of QEMU's own.
    """

    name: str
    version: str
    root: Path
    root_format: Literal["raw", "qcow2"]
    root_readonly: bool
    kernel: Path | None = None
    initrd: Path | None = None
    append: str | None = None
    firmware: Path | None = None


def _relative(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("must be a file name below the image's own directory")
    return name


_File = Annotated[str, AfterValidator(_relative)]


class Manifest(BaseModel):
    """The content of image.json; file names are relative to it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = Field(min_length=1)
    version: str = ""
    root: _File
    root_format: Literal["raw", "qcow2"] = "raw"
    root_readonly: bool = False
    kernel: _File | None = None
    initrd: _File | None = None
    append: str | None = None
    firmware: _File | None = None

    def files(self) -> list[str]:
        """Return the file names that the image needs."""
        names = (self.root, self.kernel, self.initrd, self.firmware)
        return [name for name in names if name is not None]

    def below(self, directory: str) -> Manifest:
        """Return the same manifest with its files in a directory."""
        fields = ("root", "kernel", "initrd", "firmware")
        moved = {key: f"{directory}/{name}" for key in fields if (name := getattr(self, key))}
        return self.model_copy(update=moved)


class ImageStore:
    """The images below one directory; safe for many processes at once."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def find(self, name: str) -> Image | None:
        """Return the image of that name, or None if the store has none.

        Raises:
            BrokenImage: if it is there but cannot be used.
        """
        directory = self._directory(name)
        manifest = _read_manifest(directory)
        if manifest is None:
            return None
        absent = [file for file in manifest.files() if not (directory / file).is_file()]
        if absent or manifest.name != name:
            reason = (
                f"has no {', '.join(absent)}" if absent else f"is named {manifest.name!r} inside"
            )
            raise BrokenImage(f"the image {name} {reason}; remove {directory} and build it again")
        return _image(manifest, directory)

    def names(self) -> list[str]:
        """Return the names of all images, sorted; those whose image.json is unreadable are left out."""
        names = []
        for path in self._root.glob(f"*/{_MANIFEST}"):
            try:
                manifest = _read_manifest(path.parent)
            except BrokenImage:
                continue  # `find` is where a broken image is told about
            if manifest is not None and path.parent == self._directory(manifest.name):
                names.append(manifest.name)
        return sorted(names)

    @contextmanager
    def lock(self, name: str, *, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the image's lock across processes, and clear away what a killed builder has left.

        Args:
            name: the image.
            on_wait: called once if somebody else holds the lock, before we wait for it.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / f"{_LOCK}{escape_name(name)}").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            for leftover in self._root.glob(f"{_BUILDING}{escape_name(name)}-*"):
                shutil.rmtree(leftover)
            yield

    @contextmanager
    def workspace(self, name: str) -> Iterator[Path]:
        """Give a new directory to build the image's files in; hold `lock` around it."""
        prefix = f"{_BUILDING}{escape_name(name)}-"
        with tempfile.TemporaryDirectory(prefix=prefix, dir=self._root) as directory:
            yield Path(directory)

    def add(self, manifest: Manifest, *, files: Path) -> Image:
        """Make the files of a directory the image of the manifest's name, in one step.

        Args:
            manifest: with a version and file names relative to `files`.
            files: a directory on the store's file system; it is moved into the store. Hold `lock` around it.
        """
        directory = self._directory(manifest.name)
        directory.mkdir(parents=True, exist_ok=True)
        before = _readable_manifest(directory)
        # A name that was never used: the same version may be running, or half moved by a killed builder.
        home = Path(tempfile.mkdtemp(prefix=f"{manifest.version}-", dir=directory))
        home.chmod(0o755)
        for path in files.iterdir():
            _sync(path)
            path.rename(home / path.name)
        _sync(home)
        placed = manifest.below(home.name)
        draft = directory / f".{_MANIFEST}"
        draft.write_text(placed.model_dump_json(indent=2, exclude_none=True) + "\n")
        _sync(draft)
        _sync(directory)
        draft.replace(directory / _MANIFEST)
        _sync(directory)
        _remove_old(directory, keep={home.name, *_homes(before)})
        return _image(placed, directory)

    def _directory(self, name: str) -> Path:
        return self._root / escape_name(name)


def escape_name(name: str) -> str:
    """Return a file name for an image name: different names give different file names, none starts with a dot.

    Raises:
        ValueError: if the name is empty.
    """
    if not name:
        raise ValueError("an image name cannot be empty")
    escaped = quote(name, safe="", errors="surrogatepass")
    if escaped.startswith("."):
        escaped = f"%2E{escaped[1:]}"
    if len(escaped) > _LONGEST:
        digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
        escaped = f"{escaped[: _LONGEST - len(digest) - 2]}%%{digest}"
    return escaped


def _read_manifest(directory: Path) -> Manifest | None:
    path = directory / _MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as error:
        raise BrokenImage(
            f"{path} cannot be read, remove {directory} and build it again: {error}"
        ) from error


def _readable_manifest(directory: Path) -> Manifest | None:
    try:
        return _read_manifest(directory)
    except BrokenImage:
        return None  # it is about to be replaced


def _image(manifest: Manifest, directory: Path) -> Image:
    def place(name: str | None) -> Path | None:
        return None if name is None else directory / name

    return Image(
        name=manifest.name,
        version=manifest.version,
        root=directory / manifest.root,
        root_format=manifest.root_format,
        root_readonly=manifest.root_readonly,
        kernel=place(manifest.kernel),
        initrd=place(manifest.initrd),
        append=manifest.append,
        firmware=place(manifest.firmware),
    )


def _homes(manifest: Manifest | None) -> set[str]:
    return set() if manifest is None else {Path(name).parts[0] for name in manifest.files()}


def _remove_old(directory: Path, *, keep: set[str]) -> None:
    for path in directory.iterdir():
        if path.is_dir() and path.name not in keep:
            shutil.rmtree(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
