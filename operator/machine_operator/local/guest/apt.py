"""Debian packages through the machine's apt, without root and without touching the machine.

apt gets a state and a cache directory of ours, and an empty dpkg status, so that it resolves as for
an empty machine; its sources, keys and proxies are the machine's. The machine's package lists are
read first; when they are missing, too old to resolve, or name files that the mirror has already
replaced, our own copy is updated and used from then on. Every package is kept in our archive
directory under apt's name for it, and trusted only if its SHA-256 is the one in the signed lists.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote

from machine_operator.local.guest.errors import GuestError, PackagesError
from machine_operator.local.guest.tools import run

__all__ = ["Apt", "Package", "keep", "parse_uris"]

_SYSTEM_LISTS = Path("/var/lib/apt/lists")
# The machine's hooks are for its own installations, and some want root.
_HOOKS = ("Pre-Invoke", "Post-Invoke", "Post-Invoke-Success")
_NO_HOOKS = "".join(f"#clear APT::Update::{hook};\n" for hook in _HOOKS)
_URI_LINE = re.compile(
    r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$"
)


@dataclass(frozen=True, slots=True)
class Package:
    """One package as apt resolved it; size in bytes."""

    file: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The package's name."""
        return self.file.partition("_")[0]

    @property
    def version(self) -> str:
        """The package's version, its epoch included."""
        return unquote(self.file.split("_")[1])


def parse_uris(text: str) -> list[Package]:
    """Parse what `apt-get --print-uris install` prints, in its order.

    Raises:
        PackagesError: if a line is not of the known form (apt then told us something else).
    """
    packages = []
    for line in text.splitlines():
        match = _URI_LINE.match(line.strip())
        if match is None:
            raise PackagesError(f"apt printed a line that is not a package address: {line!r}")
        packages.append(Package(match["file"], int(match["size"]), match["sha256"]))
    return packages


def keep(packages: Iterable[Package], *, dropped: Sequence[str]) -> list[Package]:
    """Return the packages whose name matches none of the shell patterns."""
    return [
        package
        for package in packages
        if not any(fnmatchcase(package.name, pattern) for pattern in dropped)
    ]


class Apt:
    """The machine's apt with directories of ours below `root`."""

    def __init__(self, root: Path, *, progress: Callable[[str], None]) -> None:
        self._state = root / "state"
        self._cache = root / "cache"
        self._archives = root / "archives"
        self._progress = progress
        own = self._state / "lists"
        self._lists = own if _has_lists(own) else _SYSTEM_LISTS
        for directory in (own / "partial", self._cache / "archives" / "partial", self._archives):
            directory.mkdir(parents=True, exist_ok=True)
        self._status = self._state / "status"
        self._status.touch()
        self._config = self._state / "apt.conf"
        self._config.write_text(_NO_HOOKS)

    def fetch(self, names: Sequence[str], *, dropped: Sequence[str]) -> list[Path]:
        """Return the files of the named packages and all they depend on, less the dropped ones.

        Raises:
            PackagesError: if apt cannot resolve or download them, with fresh lists as well.
        """
        try:
            return self._fetch(names, dropped=dropped)
        except GuestError as error:
            self._progress(
                f"package lists are missing or too old, updating our own copy ({_first_line(error)})"
            )
        self.update()
        try:
            return self._fetch(names, dropped=dropped)
        except GuestError as error:
            raise PackagesError(
                "the machine's apt cannot provide the guest's packages; its sources must offer Debian "
                f"for this architecture: {error}"
            ) from error

    def update(self) -> None:
        """Update our own copy of the package lists and use it from now on."""
        self._lists = self._state / "lists"
        try:
            self._run(["update"])
        except GuestError as error:
            # One unreachable vendor fails the whole command while Debian's own lists did arrive.
            self._progress(f"not every package list could be updated ({_first_line(error)})")

    def debian_sources(self) -> list[str]:
        """Return the machine's Debian sources as lines of a sources.list, other vendors left out.

        Raises:
            PackagesError: if there are none.
        """
        lines = self._index_targets()
        if not lines:
            self.update()
            lines = self._index_targets()
        if not lines:
            raise PackagesError("the machine's apt has no source of Debian packages in /etc/apt")
        return lines

    def _index_targets(self) -> list[str]:
        form = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
        argv = [
            "apt-get",
            *self._options(),
            "indextargets",
            "--format",
            form,
            "Created-By: Packages",
        ]
        lines = []
        for row in run(argv).decode().splitlines():
            origin, uri, release, component = row.split("|")
            if origin == "Debian":
                lines.append(f"deb {uri} {release} {component}")
        return lines

    def _fetch(self, names: Sequence[str], *, dropped: Sequence[str]) -> list[Path]:
        resolve = ["--no-install-recommends", "--print-uris", "-y", "install", *names]
        packages = keep(parse_uris(self._run(resolve).decode()), dropped=dropped)
        absent = [package for package in packages if not self._is_here(package)]
        if absent:
            size = sum(package.size for package in absent) / 2**20
            self._progress(f"downloading {len(absent)} packages, {size:.0f} MiB")
            wanted = [f"{package.name}={package.version}" for package in absent]
            self._run(["download", *wanted], cwd=self._archives)
        broken = [package.file for package in absent if not self._is_here(package)]
        if broken:
            raise PackagesError(
                f"apt downloaded other bytes than its lists promise: {', '.join(broken)}"
            )
        self._forget_all_but(packages)
        return [self._archives / package.file for package in packages]

    def _forget_all_but(self, packages: Iterable[Package]) -> None:
        wanted = {package.file for package in packages}
        for path in self._archives.glob("*.deb"):
            if path.name not in wanted:
                path.unlink()

    def _is_here(self, package: Package) -> bool:
        path = self._archives / package.file
        try:
            with path.open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
        except FileNotFoundError:
            return False
        if not whole:
            path.unlink()
        return whole

    def _run(self, arguments: Sequence[str], *, cwd: Path | None = None) -> bytes:
        return run(["apt-get", *self._options(), "-qq", *arguments], cwd=cwd)

    def _options(self) -> list[str]:
        settings = {
            "Dir::State": self._state,
            "Dir::State::lists": self._lists,
            "Dir::State::status": self._status,
            "Dir::Cache": self._cache,
            "Acquire::ForceHash": "SHA256",
            "Acquire::Languages": "none",
        }
        if os.geteuid() == 0:
            # apt downloads as the user _apt, who cannot write below a private cache directory.
            settings["APT::Sandbox::User"] = "root"
        options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        return ["-c", str(self._config), *options]


def _has_lists(directory: Path) -> bool:
    return any(directory.glob("*_Packages*"))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
