"""Obtaining the control plane's binaries, with a fake `go` that writes scripts."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine_operator.local.binaries import (
    COMPONENTS,
    MANIFESTS,
    PrebuiltUnusableError,
    SourceNotFoundError,
    ensure_binaries,
    find_source,
)
from machine_operator.local.locks import exclusive
from machine_operator.local.progress import Lines, Snapshot, StepProgress
from machine_operator.local.toolchain import (
    BinariesError,
    BuildFailedError,
    GoUnusableError,
    SpaceError,
    check_space,
)

GO_MOD = """module machines.dedaluslabs.ai/local-cluster

go 1.26.0

require kubevirt.io/kubevirt v1.8.2

require (
	go.etcd.io/etcd/server/v3 v3.6.5 // indirect
	k8s.io/kubernetes v1.34.2 // indirect
)

replace k8s.io/kubernetes => k8s.io/kubernetes v1.2.3
"""

# Builds "executables" that print a version or, with no argument, a List. Told by files in
# its state directory: NAME.fail makes a build fail, NAME.hang makes it hang.
GO = """#!/bin/sh
state='{state}'
case "$1" in
env) printf '%s\\n' "$(cat $state/version)" $state/modules $state/build-cache; exit ;;
list) echo "list $*" >>$state/calls; exit ;;
esac
while [ "$1" != -o ]; do [ "$1" = -ldflags ] && echo "$2" >$state/ldflags; shift; done
name=$(basename "$2"); name=${{name%%.*}}
echo "$name" >>$state/calls
env >$state/environment
echo "half an executable" >"$2"
if [ -e "$state/$name.hang" ]; then echo $$ >$state/hanging; exec sleep 600; fi
if [ -e "$state/$name.fail" ]; then echo 'x.go:1: undefined: y'; exit 1; fi
cat >"$2" <<'END'
#!/bin/sh
[ $# -gt 0 ] && echo "Kubernetes v1.34.2" || echo '{{"kind": "List", "items": [{{}}]}}'
END
chmod +x "$2"
"""


class Bench:
    """A source directory, a cache and a fake Go, all in one temporary directory."""

    def __init__(self, root: Path) -> None:
        self.cache, self.source, self.state = root / "cache", root / "source", root / "state"
        (self.source / "manifests").mkdir(parents=True)
        (self.source / "go.mod").write_text(GO_MOD)
        (self.source / "go.sum").write_text("")
        (self.source / "manifests" / "main.go").write_text("package main\n")
        for module in ("k8s.io/kubernetes@v1.34.2", "kubevirt.io/kubevirt@v1.8.2"):
            (self.state / "modules" / module).mkdir(parents=True)
        (self.state / "modules" / "go.etcd.io/etcd/server/v3@v3.6.5").mkdir(parents=True)
        for name in ("00", "55", "aa", "ff"):  # sparse: looks like a warm cache of 4 GiB
            (self.state / "build-cache" / name).mkdir(parents=True)
            with (self.state / "build-cache" / name / "entry").open("wb") as file:
                file.truncate(16 * 1024**2)
        (self.state / "version").write_text("go1.26.8\n")
        self.path = root / "path"
        self.path.mkdir()
        executable(self.path / "go", GO.format(state=self.state))
        self.output = io.StringIO()
        self.progress = StepProgress(Lines(self.output))
        self.environ = {"PATH": f"{self.path}:/usr/bin:/bin", "GOFLAGS": "-mod=vendor"}

    def ensure(self, prebuilt: Path | None = None) -> Path:
        return ensure_binaries(
            self.cache,
            source=self.source,
            prebuilt=prebuilt,
            progress=self.progress,
            environ=self.environ,
        )

    def calls(self) -> list[str]:
        """What was built since the last call."""
        path = self.state / "calls"
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return text.splitlines()


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def leftovers(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in root.rglob("*.part")]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    assert leftovers(bench.cache) == []


def test_everything_is_built_once_in_order_and_then_found(bench: Bench) -> None:
    directory = bench.ensure()
    assert bench.calls() == list(COMPONENTS)
    assert sorted(path.name for path in directory.iterdir()) == sorted([*COMPONENTS, MANIFESTS])
    assert json.loads((directory / MANIFESTS).read_text())["items"] == [{}]
    assert set(COMPONENTS) <= set(bench.progress.durations)
    assert directory == bench.cache / "control-plane" / directory.parent.name / "bin"
    bench.environ["PATH"] = ""  # no Go is needed any more
    assert bench.ensure() == directory
    assert bench.calls() == []


def test_build_is_told_its_versions_and_shielded_from_the_users_settings(bench: Bench) -> None:
    bench.ensure()
    assert (bench.state / "ldflags").read_text().split() == [
        "-s",
        "-w",
        "-X",
        "k8s.io/component-base/version.gitVersion=v1.34.2",
        "-X",
        "k8s.io/component-base/version.gitMajor=1",
        "-X",
        "k8s.io/component-base/version.gitMinor=34",
        "-X",
        "k8s.io/client-go/pkg/version.gitVersion=v1.34.2",
    ]
    environment = (bench.state / "environment").read_text().splitlines()
    assert "GOFLAGS=-mod=readonly -trimpath -buildvcs=false" in environment
    assert "CGO_ENABLED=0" in environment
    assert "GOWORK=off" in environment


@pytest.mark.parametrize("changed", ["go.mod", "go.sum", "manifests/main.go"])
def test_key_changes_with_each_input_and_with_nothing_else(bench: Bench, changed: str) -> None:
    first = bench.ensure()
    moved = bench.source.with_name("elsewhere")
    shutil.copytree(bench.source, moved)
    (moved / "README").write_text("not an input")
    bench.source = moved
    assert bench.ensure() == first
    with (moved / changed).open("a") as file:
        file.write("// changed\n")
    assert bench.ensure() != first


def test_failure_shows_gos_words_and_the_log_and_the_next_run_resumes(bench: Bench) -> None:
    (bench.state / "virt-api.fail").touch()
    with pytest.raises(
        BuildFailedError, match=r"(?s)virt-api failed.*x\.go:1: undefined: y"
    ) as caught:
        bench.ensure()
    log = Path(str(caught.value).rpartition("log is ")[2].rstrip("."))
    assert "undefined: y" in log.read_text()
    assert bench.calls() == list(COMPONENTS)[:6]
    (bench.state / "virt-api.fail").unlink()
    bench.ensure()
    assert bench.calls() == ["virt-api", "virt-controller", "kubevirt-manifests"]


def test_kill_in_the_middle_breaks_nothing_and_loses_no_finished_part(bench: Bench) -> None:
    (bench.state / "kubectl.hang").touch()
    code = (
        "import sys; from pathlib import Path; from machine_operator.local import binaries;"
        "from machine_operator.local.progress import progress_for;"
        "binaries.ensure_binaries(Path(sys.argv[1]), source=Path(sys.argv[2]), prebuilt=None,"
        " progress=progress_for(sys.stderr))"
    )
    victim = subprocess.Popen(
        [sys.executable, "-c", code, str(bench.cache), str(bench.source)],
        env={**bench.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
    )
    hanging = bench.state / "hanging"
    wait_for_text(hanging, victim)
    victim.kill()
    victim.wait()
    os.kill(int(hanging.read_text()), signal.SIGKILL)  # the orphaned go
    assert len(leftovers(bench.cache)) == 1
    assert bench.calls() == list(COMPONENTS)[:5]
    (bench.state / "kubectl.hang").unlink()
    directory = bench.ensure()
    assert bench.calls() == list(COMPONENTS)[4:]
    assert "half" not in (directory / "kubectl").read_text()


def wait_for_text(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait up to 30 s for the file to have content."""
    deadline = threading.Event()
    timer = threading.Timer(30, deadline.set)
    timer.start()
    try:
        while not (path.exists() and path.read_text()):
            assert process.poll() is None, f"ended with {process.returncode} too early"
            assert not deadline.wait(0.01), f"{path} did not appear within 30 s"
    finally:
        timer.cancel()


def test_files_missing_from_a_finished_directory_are_put_back(bench: Bench) -> None:
    directory = bench.ensure()
    (directory / "etcd").unlink()
    shutil.rmtree(directory.parent / "parts")
    bench.calls()
    assert bench.ensure() == directory
    assert bench.calls() == list(COMPONENTS)
    assert os.access(directory / "etcd", os.X_OK)


def test_second_process_waits_with_a_message_and_builds_nothing(bench: Bench) -> None:
    key = bench.ensure().parent
    shutil.rmtree(key / "bin")
    bench.calls()
    results: list[Path] = []
    thread = threading.Thread(target=lambda: results.append(bench.ensure()))
    display = NoteSignal()
    bench.progress = StepProgress(display)
    with exclusive(key / "lock", on_wait=print, timeout=0):
        thread.start()
        assert display.noted.wait(30), "the second one does not say that it waits"
    thread.join(30)
    assert results == [key / "bin"]
    assert bench.calls() == []


class NoteSignal:
    """A display that tells when a note about waiting came."""

    def __init__(self) -> None:
        self.noted = threading.Event()

    def note(self, text: str) -> None:
        if f"waiting for process {os.getpid()}" in text:
            self.noted.set()

    def update(self, snapshot: Snapshot) -> None:
        pass

    def idle(self) -> None:
        pass


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_prebuilt_binaries_are_used_and_the_rest_is_built(
    bench: Bench, tmp_path: Path, how: str
) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    names = ("etcd", "kube-apiserver", "kubectl")
    for name in names:
        executable(assets / name, "#!/bin/sh\necho Kubernetes v1.33.0\n")
    if how == "variable":
        bench.environ["KUBEBUILDER_ASSETS"] = str(assets)
    prebuilt = assets if how == "argument" else None
    directory = bench.ensure(prebuilt)
    assert bench.calls() == [name for name in COMPONENTS if name not in names]
    assert all((directory / name).resolve() == assets / name for name in names)
    assert "kubectl is v1.33, while the rest of the control plane is v1.34.2" in (
        bench.output.getvalue()
    )
    assert bench.ensure(prebuilt) == directory
    assert bench.calls() == []
    bench.environ.pop("KUBEBUILDER_ASSETS", None)
    assert bench.ensure().name == "bin"
    assert bench.calls() == list(names), "what was built beside them is shared"


def test_with_everything_prebuilt_go_is_not_needed(bench: Bench, tmp_path: Path) -> None:
    built = bench.ensure()
    bench.environ["PATH"] = ""
    other = Bench(tmp_path / "other")
    other.environ["PATH"] = "/usr/bin:/bin"
    directory = other.ensure(built)
    assert (directory / MANIFESTS).read_text() == (built / MANIFESTS).read_text()


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        ("#!/bin/sh\necho broken library >&2; exit 127\n", 0o755, "status 127: broken library"),
        ("not for this machine", 0o755, "does not run on this machine"),
        ("#!/bin/sh\n", 0o644, "does not run on this machine"),
    ],
)
def test_prebuilt_binary_that_does_not_run_is_refused(
    bench: Bench, tmp_path: Path, content: str, mode: int, says: str
) -> None:
    path = executable(tmp_path / "etcd", content)
    path.chmod(mode)
    with pytest.raises(PrebuiltUnusableError, match=says):
        bench.ensure(tmp_path)
    assert bench.calls() == []


def test_directory_without_prebuilt_binaries_is_refused(bench: Bench, tmp_path: Path) -> None:
    bench.environ["KUBEBUILDER_ASSETS"] = str(tmp_path / "nowhere")
    with pytest.raises(PrebuiltUnusableError, match="holds none of etcd, kube-apiserver"):
        bench.ensure()


def test_missing_go_is_named_with_its_version(bench: Bench) -> None:
    (bench.path / "go").unlink()
    bench.environ["PATH"] = str(bench.path)
    with pytest.raises(GoUnusableError, match=r"no `go` on PATH.*needs Go 1\.26\.0 or newer"):
        bench.ensure()


@pytest.mark.parametrize("version", ["go1.25.9", "go1.9", ""])
def test_old_go_is_refused(bench: Bench, version: str) -> None:
    (bench.state / "version").write_text(f"{version}\n")
    with pytest.raises(GoUnusableError, match=r"is version .*needs Go 1\.26\.0 or newer"):
        bench.ensure()


@pytest.mark.parametrize("version", ["go1.26.0", "go1.27rc1", "devel go1.27-abcdef", "go2.0"])
def test_new_go_is_accepted(bench: Bench, version: str) -> None:
    (bench.state / "version").write_text(f"{version}\n")
    assert bench.ensure().name == "bin"


def test_printer_that_prints_nonsense_is_an_error(bench: Bench, tmp_path: Path) -> None:
    executable(tmp_path / "kubevirt-manifests", "#!/bin/sh\necho hello\n")
    with pytest.raises(BuildFailedError, match="did not print a List"):
        bench.ensure(tmp_path)


def test_cache_that_cannot_be_written_is_an_error(bench: Bench) -> None:
    bench.cache = bench.source / "go.mod"  # a file
    with pytest.raises(BinariesError, match="cannot be put into"):
        bench.ensure()
    bench.cache = bench.source


def test_space_is_added_up_by_file_system(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    check_space([(tmp_path / "not" / "yet", 1)])
    with pytest.raises(SpaceError, match=r"needs about .* GiB on the file system of"):
        check_space([(tmp_path / "a", free * 2 // 3), (tmp_path / "b", free * 2 // 3)])


def test_source_is_found_above_the_package_and_its_absence_is_an_error(tmp_path: Path) -> None:
    package = tmp_path / "a" / "machine_operator" / "local" / "binaries.py"
    with pytest.raises(SourceNotFoundError, match="No directory local-cluster"):
        find_source(package)
    for parent, module in (("a/machine_operator", "somebody.example/else"), ("", None)):
        place = tmp_path / parent / "local-cluster"
        place.mkdir(parents=True)
        (place / "go.mod").write_text(f"module {module}\n" if module else GO_MOD)
    assert find_source(package) == tmp_path / "local-cluster"
    assert (find_source() / "go.sum").is_file()


def test_go_mod_without_the_versions_is_an_error(bench: Bench) -> None:
    (bench.source / "go.mod").write_text("module x\n\ngo 1.26.0\n")
    with pytest.raises(SourceNotFoundError, match="does not name a version of Go and of each"):
        bench.ensure()
    (bench.source / "go.mod").unlink()
    with pytest.raises(SourceNotFoundError, match="is not the source of the control plane"):
        bench.ensure()


def test_missing_modules_are_fetched_before_the_builds(bench: Bench) -> None:
    shutil.rmtree(bench.state / "modules" / "kubevirt.io")
    if shutil.disk_usage(bench.state).free < 4 * 1024**3:
        with pytest.raises(SpaceError):
            bench.ensure()
        return
    bench.ensure()
    assert bench.calls()[0].startswith("list list -deps")
    assert "Go modules" in bench.progress.durations
