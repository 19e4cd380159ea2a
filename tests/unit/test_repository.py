"""What must hold for the files of this repository themselves."""

import subprocess
import sys
from pathlib import Path

from machine_operator.api.crd import machine_crd, render

ROOT = Path(__file__).resolve().parents[2]


def test_operator_directory_is_no_package():
    assert not (ROOT / "operator" / "__init__.py").exists(), (
        "operator/__init__.py shadows Python's own module `operator`: remove it"
    )


def test_python_still_starts_in_the_root():
    done = subprocess.run(
        [sys.executable, "-c", "import collections, operator; print(operator.__name__)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "operator\n", done.stderr


def test_crds_are_what_the_command_prints():
    assert (ROOT / "crds" / "machines.yaml").read_text() == render(machine_crd()), (
        "crds/machines.yaml is not what `machine-operator crds` prints: run `make crds`"
    )


def test_machine_docs_are_what_the_script_prints():
    printed = subprocess.run(
        [sys.executable, ROOT / "scripts" / "machine-docs"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert (ROOT / "docs" / "machine.md").read_text() == printed, "run `make docs`"
