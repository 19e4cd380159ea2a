"""Obtaining the executables of the local control plane, building what is not there.

    <cache>/control-plane/<key>/parts/NAME   finished, one by one, each renamed in whole
    <cache>/control-plane/<key>/bin/         all of them: what callers get, renamed in whole
    <cache>/control-plane/<key>/logs/NAME    what go said

The key is a digest of everything that decides what is built, so a directory never
changes its meaning and is never updated in place. A kill at any moment leaves at worst
a file whose name ends in `.part`, which the next run removes; finished parts are reused.
With prebuilt binaries, `bin-<their digest>/` beside `bin/` links to them for their share.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .locks import LockTimeoutError, exclusive
from .progress import Progress
from .toolchain import GIB, BinariesError, BuildFailedError, Go, check_space, find_go, go_platform

__all__ = [
    "COMPONENTS",
    "MANIFESTS",
    "PrebuiltUnusableError",
    "SourceNotFoundError",
    "ensure_binaries",
    "find_source",
]

MANIFESTS = "kubevirt.json"
"""The file beside the executables with KubeVirt's objects, a v1 List."""

_MODULE = "machines.dedaluslabs.ai/local-cluster"
_LOCK_TIMEOUT = 3600.0
_RUN_TIMEOUT = 60.0


class SourceNotFoundError(BinariesError):
    """There is no go.mod to build the control plane from."""


class PrebuiltUnusableError(BinariesError):
    """Binaries that were given do not run here."""


@dataclass(frozen=True, slots=True)
class Component:
    """One executable."""

    package: str
    cold_seconds: float
    """Time to build with empty caches on 2 cores, after the components before it."""
    check: tuple[str, ...] = ("--version",)
    """Arguments that make it print something and end."""


COMPONENTS: Mapping[str, Component] = {
    "etcd": Component("go.etcd.io/etcd/server/v3", 42),
    "kube-apiserver": Component("k8s.io/kubernetes/cmd/kube-apiserver", 206),
    "kube-controller-manager": Component("k8s.io/kubernetes/cmd/kube-controller-manager", 61),
    "kube-scheduler": Component("k8s.io/kubernetes/cmd/kube-scheduler", 6),
    "kubectl": Component("k8s.io/kubernetes/cmd/kubectl", 22, ("version", "--client")),
    "virt-api": Component("kubevirt.io/kubevirt/cmd/virt-api", 59, ("--help",)),
    "virt-controller": Component("kubevirt.io/kubevirt/cmd/virt-controller", 24, ("--help",)),
    "kubevirt-manifests": Component("./manifests", 3, ()),
}


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be built, from where, and the digest of it all."""

    source: Path
    go: str
    modules: Mapping[str, str]
    ldflags: str
    key: str


def ensure_binaries(
    cache: Path,
    *,
    source: Path | None,
    prebuilt: Path | None,
    progress: Progress,
    environ: Mapping[str, str] | None = None,
) -> Path:
    """The directory with all of COMPONENTS and MANIFESTS; builds what is missing.

    `source` is the directory with the go.mod (default: the project's own), `prebuilt`
    one with finished executables (default: $KUBEBUILDER_ASSETS, if set); what it lacks
    is built. Blocks for milliseconds when all is there, for seconds with Go's caches
    warm, and for about 7 minutes on 2 cores with them empty. Safe to call from several
    processes at once. Raises BinariesError with a text for people.
    """
    environ = os.environ if environ is None else environ
    plan = _read_plan(source or find_source())
    home = cache / "control-plane" / plan.key
    given = _given(prebuilt, environ=environ)
    directory = home / ("bin" if not given else f"bin-{_digest_given(given)}")
    if _complete(directory):
        return directory
    try:
        with exclusive(home / "lock", on_wait=progress.note, timeout=_LOCK_TIMEOUT):
            if not _complete(directory):  # another process may have just made it
                _obtain(plan, home=home, given=given, progress=progress, environ=environ)
                _assemble(directory, parts=home / "parts", given=given)
    except LockTimeoutError as error:
        raise BinariesError(str(error)) from error
    except OSError as error:
        raise BinariesError(f"The control plane cannot be put into {home}: {error}.") from error
    return directory


def find_source(start: Path | None = None) -> Path:
    """The directory `local-cluster` of the checkout, or the one packaged in the wheel.

    Both are found by walking up from this file. SourceNotFoundError if neither is there.
    """
    here = start or Path(__file__).resolve()
    for parent in here.parents:
        candidate = parent / "local-cluster"
        go_mod = candidate / "go.mod"
        if go_mod.is_file() and f"module {_MODULE}\n" in go_mod.read_text():
            return candidate
    raise SourceNotFoundError(
        f"No directory local-cluster with the go.mod of {_MODULE} lies in any directory above "
        f"{here}. Run from a checkout of the project, or name the directory."
    )


def _read_plan(source: Path) -> _Plan:
    try:
        go_mod = (source / "go.mod").read_text()
        inputs = [source / "go.mod", source / "go.sum", *sorted(source.glob("manifests/*.go"))]
        contents = {str(path.relative_to(source)): path.read_bytes() for path in inputs}
    except OSError as error:
        raise SourceNotFoundError(
            f"{source} is not the source of the control plane: {error}."
        ) from error
    go = re.search(r"^go (\S+)$", go_mod, re.MULTILINE)
    required = dict(re.findall(r"^(?:require )?\t?(\S+\.\S+/\S+) (v\S+)", go_mod, re.MULTILINE))
    wanted = ("k8s.io/kubernetes", "kubevirt.io/kubevirt", "go.etcd.io/etcd/server/v3")
    if go is None or not all(module in required for module in wanted):
        raise SourceNotFoundError(
            f"{source / 'go.mod'} does not name a version of Go and of each of {', '.join(wanted)}."
        )
    modules = {module: required[module] for module in wanted}
    ldflags = _ldflags(modules["k8s.io/kubernetes"])
    digest = hashlib.sha256()
    for name, content in (*contents.items(), ("", f"{ldflags} {go_platform()}".encode())):
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return _Plan(source, go[1], modules, ldflags, digest.hexdigest()[:16])


def _ldflags(kubernetes: str) -> str:
    """Stamp the version as Kubernetes' own build does: servers and clients report it."""
    major, minor = kubernetes.removeprefix("v").split(".")[:2]
    values = {
        "k8s.io/component-base/version.gitVersion": kubernetes,
        "k8s.io/component-base/version.gitMajor": major,
        "k8s.io/component-base/version.gitMinor": minor,
        "k8s.io/client-go/pkg/version.gitVersion": kubernetes,
    }
    return "-s -w " + " ".join(f"-X {name}={value}" for name, value in values.items())


def _given(prebuilt: Path | None, *, environ: Mapping[str, str]) -> dict[str, Path]:
    """Prebuilt executables by component. KUBEBUILDER_ASSETS is controller-runtime's
    variable for a directory with etcd, kube-apiserver and kubectl.
    """
    if prebuilt is None:
        assets = environ.get("KUBEBUILDER_ASSETS")
        if not assets:
            return {}
        prebuilt = Path(assets)
    found = {name: path for name in COMPONENTS if (path := prebuilt.resolve() / name).exists()}
    if not found:
        raise PrebuiltUnusableError(
            f"The directory {prebuilt} with prebuilt binaries is not there or holds none of "
            f"{', '.join(COMPONENTS)}. Name another one (KUBEBUILDER_ASSETS or the option), "
            "or none to have them built."
        )
    return found


def _digest_given(given: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in given.items():
        status = path.stat()
        digest.update(f"{name} {path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _complete(directory: Path) -> bool:
    """Whether callers can have it. Links to prebuilt binaries may dangle by now."""
    return (directory / MANIFESTS).is_file() and all(
        os.access(directory / name, os.X_OK) for name in COMPONENTS
    )


def _obtain(
    plan: _Plan,
    *,
    home: Path,
    given: Mapping[str, Path],
    progress: Progress,
    environ: Mapping[str, str],
) -> None:
    """Fill `parts` with what is neither there nor given."""
    for name, path in given.items():
        _check_given(name, path, plan=plan, progress=progress)
    parts = home / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    _sweep(parts)
    missing = [
        name for name in COMPONENTS if name not in given and not os.access(parts / name, os.X_OK)
    ]
    if missing:
        with progress.step("Go toolchain"):  # it may fetch itself in the wanted version
            go = find_go(plan.source, wanted=plan.go, environ=environ)
        modules_present = go.modules_present(plan.modules)
        _check_space(go, home=home, modules_present=modules_present)
        progress.expect({name: COMPONENTS[name].cold_seconds for name in missing})
        if not modules_present:
            _fetch_modules(go, missing, home=home, progress=progress)
        for name in missing:
            with progress.step(name):
                _build(name, go=go, plan=plan, home=home)
    printer = given.get("kubevirt-manifests", parts / "kubevirt-manifests")
    _print_manifests(printer, target=parts / MANIFESTS)
    _sweep(parts)  # again: a killed run's orphaned go may have ended in the meantime


def _sweep(parts: Path) -> None:
    for leftover in parts.glob("*.part"):
        leftover.unlink(missing_ok=True)


def _check_given(name: str, path: Path, *, plan: _Plan, progress: Progress) -> None:
    answer = _run(path, COMPONENTS[name].check, refuse=PrebuiltUnusableError)
    version = re.search(r"\bv\d+\.\d+", answer)
    kubernetes = plan.modules["k8s.io/kubernetes"]
    if (
        COMPONENTS[name].package.startswith("k8s.io/")
        and version
        and not kubernetes.startswith(f"{version[0]}.")
    ):
        progress.note(
            f"{path} is {version[0]}, while the rest of the control plane is {kubernetes}"
        )


def _check_space(go: Go, *, home: Path, modules_present: bool) -> None:
    """About 8 GiB with nothing there, 1 GiB with Go's caches filled by an earlier build."""
    warm = go.build_cache_bytes() > 2 * GIB
    check_space(
        (
            (home, GIB),
            (go.module_cache, 0 if modules_present else 5 * GIB // 2),
            (go.build_cache, 0 if warm else 9 * GIB // 2),
        )
    )


def _fetch_modules(go: Go, names: list[str], *, home: Path, progress: Progress) -> None:
    """Fetch what the build needs, before it, so that network trouble shows as such.

    `go mod download` would fetch every module that go.mod mentions; this, those used.
    """
    with progress.step("Go modules"):
        packages = [COMPONENTS[name].package for name in names]
        go.run(
            ["list", "-deps", "-f", "{{with .Error}}{{.}}{{end}}", *packages],
            log=home / "logs" / "modules",
            doing=f"Fetching the Go modules of {', '.join(names)} (through the GOPROXY in force)",
        )


def _build(name: str, *, go: Go, plan: _Plan, home: Path) -> None:
    target = home / "parts" / name
    # The pid keeps apart what a killed run's orphaned go may still be writing.
    part = target.with_name(f"{name}.{os.getpid()}.part")
    try:
        go.run(
            ["build", "-ldflags", plan.ldflags, "-o", str(part), COMPONENTS[name].package],
            log=home / "logs" / name,
            doing=f"Building {name}",
        )
        _publish(part, target)
    finally:
        part.unlink(missing_ok=True)


def _print_manifests(printer: Path, *, target: Path) -> None:
    if target.is_file():
        return
    text = _run(printer, (), refuse=BuildFailedError)
    try:
        count = len(json.loads(text)["items"])
    except (ValueError, LookupError, TypeError) as error:
        raise BuildFailedError(f"{printer} did not print a List of objects: {error!r}.") from error
    if count == 0:
        raise BuildFailedError(f"{printer} printed an empty List.")
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    part.write_text(text)
    _publish(part, target)


def _run(executable: Path, arguments: tuple[str, ...], *, refuse: type[BinariesError]) -> str:
    try:
        answer = subprocess.run(
            [executable, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_RUN_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise refuse(f"{executable} does not run on this machine: {error}.") from error
    if answer.returncode != 0:
        raise refuse(
            f"`{' '.join((str(executable), *arguments))}` ended with status {answer.returncode}: "
            f"{(answer.stderr or answer.stdout).strip()[-500:] or '(it said nothing)'}"
        )
    return answer.stdout


def _publish(part: Path, target: Path) -> None:
    with part.open("rb") as file:
        os.fsync(file.fileno())  # else a power cut could leave the name without the content
    part.replace(target)


def _assemble(directory: Path, *, parts: Path, given: Mapping[str, Path]) -> None:
    """Put everything together under a temporary name and rename it to `directory`."""
    for leftover in directory.parent.glob(f"{directory.name}.*.part"):
        shutil.rmtree(leftover)
    part = directory.with_name(f"{directory.name}.{os.getpid()}.part")
    part.mkdir()
    for name in (*COMPONENTS, MANIFESTS):
        if name in given:
            (part / name).symlink_to(given[name])
        else:
            (part / name).hardlink_to(parts / name)
    if directory.exists():  # incomplete: somebody removed files from it
        shutil.rmtree(directory)
    part.rename(directory)
