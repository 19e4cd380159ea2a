"""Finding a usable Go, and running it so that the result depends on nothing around it.

Everything that could change what is built (an outer go.work, the user's GOFLAGS, cgo,
a cross-compilation setting) is set for the child explicitly. What only says where
things are kept or fetched from (GOPROXY, GOMODCACHE, GOCACHE) is left to the user.
"""

import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "BinariesError",
    "BuildFailedError",
    "Go",
    "GoUnusableError",
    "SpaceError",
    "check_space",
    "find_go",
    "go_platform",
]

GIB = 1024**3
_TAIL_LINES = 25


class BinariesError(RuntimeError):
    """The control plane's binaries cannot be had.

    BinariesError
    ├── SourceNotFoundError      no go.mod to build from
    ├── PrebuiltUnusableError    given binaries do not run
    ├── GoUnusableError          Go is missing or too old
    ├── SpaceError               too little disk space to begin
    └── BuildFailedError         go said no; the text has its last lines
    """


class GoUnusableError(BinariesError):
    """Go is missing or too old."""


class SpaceError(BinariesError):
    """There is too little disk space to begin."""


class BuildFailedError(BinariesError):
    """A command that should produce something failed."""


@dataclass(frozen=True, slots=True)
class Go:
    """A Go toolchain that is new enough, bound to one source directory."""

    executable: str
    version: str
    source: Path
    module_cache: Path
    build_cache: Path
    environment: Mapping[str, str]

    def run(self, arguments: Sequence[str], *, log: Path, doing: str) -> None:
        """Run go with its output in `log`; BuildFailedError with its end if it fails."""
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [self.executable, *arguments]
        with log.open("wb") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            with subprocess.Popen(
                command,
                cwd=self.source,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            ) as process:
                try:
                    code = process.wait()
                except BaseException:
                    process.terminate()
                    raise
        if code != 0:
            raise BuildFailedError(
                f"{doing} failed: go ended with status {code}. Its last lines:\n"
                f"{_tail(log)}\nThe full log is {log}."
            )

    def modules_present(self, modules: Mapping[str, str]) -> bool:
        """Whether the module cache holds these modules (path to version)."""
        return all((self.module_cache / f"{m}@{v}").is_dir() for m, v in modules.items())

    def build_cache_bytes(self) -> int:
        """Size of the build cache, estimated from 4 of its 256 directories.

        Entries are spread over them by hash; walking all takes seconds on a big cache.
        """
        sample = [self.build_cache / name for name in ("00", "55", "aa", "ff")]
        sizes = (
            entry.stat().st_size
            for directory in sample
            if directory.is_dir()
            for entry in directory.iterdir()
        )
        return sum(sizes) * 256 // len(sample)


def go_platform() -> tuple[str, str]:
    """GOOS and GOARCH of this machine, without asking Go, which may not be there."""
    machine = platform.machine().lower()
    architectures = {"x86_64": "amd64", "aarch64": "arm64"}
    return platform.system().lower(), architectures.get(machine, machine)


def find_go(source: Path, *, wanted: str, environ: Mapping[str, str]) -> Go:
    """The Go on PATH, if it is at least `wanted`, else GoUnusableError.

    Asking in the source directory lets Go fetch the wanted toolchain by itself where
    the user allows that (GOTOOLCHAIN).
    """
    advice = (
        f"Building the local cluster's control plane needs Go {wanted} or newer. Install it "
        "from the Go project's download page or as a package, and put `go` on PATH; or give a "
        "directory with the finished binaries."
    )
    executable = shutil.which("go", path=environ.get("PATH"))
    if executable is None:
        raise GoUnusableError(f"There is no `go` on PATH. {advice}")
    goos, goarch = go_platform()
    environment = {
        **environ,
        "CGO_ENABLED": "0",
        "GO111MODULE": "on",
        "GOARCH": goarch,
        "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false",
        "GOOS": goos,
        "GOWORK": "off",
    }
    answer = subprocess.run(
        [executable, "env", "GOVERSION", "GOMODCACHE", "GOCACHE"],
        cwd=source,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        raise GoUnusableError(f"{executable} does not work: {answer.stderr.strip()}. {advice}")
    version, module_cache, build_cache = (*answer.stdout.splitlines(), "", "", "")[:3]
    if _numbers(version) < _numbers(wanted):
        raise GoUnusableError(f"{executable} is version {version or 'unknown'}. {advice}")
    return Go(
        executable=executable,
        version=version,
        source=source,
        module_cache=Path(module_cache),
        build_cache=Path(build_cache),
        environment=environment,
    )


def check_space(needs: Iterable[tuple[Path, int]]) -> None:
    """SpaceError unless each directory's file system has the bytes it needs.

    Directories on one file system add up. They need not exist yet.
    """
    totals: dict[int, tuple[int, list[Path]]] = {}
    for directory, size in needs:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        device = existing.stat().st_dev
        total, paths = totals.get(device, (0, []))
        totals[device] = (total + size, [*paths, existing])
    for total, paths in totals.values():
        free = shutil.disk_usage(paths[0]).free
        if free < total:
            places = ", ".join(sorted({str(path) for path in paths}))
            raise SpaceError(
                f"Building the control plane needs about {total / GIB:.1f} GiB on the file system "
                f"of {places}, which has {free / GIB:.1f} GiB free. Free some, or move the caches "
                "(GOMODCACHE, GOCACHE, the cache directory) to a larger file system."
            )


def _numbers(version: str) -> tuple[int, ...]:
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(part or 0) for part in match.groups()) if match else ()


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[1:]  # without the command
    return "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:]) or "    (it said nothing)"
