"""Schemathesis: requests that follow a document, and ones that break it in every place, against a live gateway.

One machine is there for all of them to meet, and another one to be destroyed; a quota keeps the rest from flooding the
cluster. Each run is the same as the last one.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.support import Cluster, run, until
from tests.conformance.support import GatewayProcess, Rest, free_port

pytestmark = pytest.mark.cluster

CONTRACT = Path(__file__).resolve().parents[3] / "shared" / "reference" / "dcs-openapi.json"
MOST_MACHINES = 12
EXAMPLES = 12
PATIENCE = 60.0

_QUOTA = f"""\
apiVersion: v1
kind: ResourceQuota
metadata: {{name: few}}
spec: {{hard: {{count/machines.machines.dedaluslabs.ai: {MOST_MACHINES}}}}}
"""

_CONFIG = """\
[parameters]
"header.X-Dedalus-Org-Id" = "{org}"
"path.machine_id" = "{machine}"

[[operations]]
include-operation-id = "deleteMachine"
parameters = {{ "path.machine_id" = "{doomed}" }}
"""

RATES = tuple(
    f"--{scope}-{how}=100000" for scope in ("change", "read", "sleep") for how in ("rate", "burst")
)


@dataclass(frozen=True)
class Target:
    """What schemathesis is let loose on."""

    gateway: GatewayProcess
    key: str
    config: Path

    def run(
        self,
        document: str,
        *,
        checks: tuple[str, ...],
        only: tuple[str, ...] = (),
        without: tuple[str, ...] = (),
    ) -> str:
        """One run; the whole report when something was found."""
        program = Path(sys.executable).with_name("schemathesis")
        options = [
            *(f"--url={self.gateway.base}", f"--header=Authorization: Bearer {self.key}"),
            *("--phases=examples,coverage,fuzzing", f"--max-examples={EXAMPLES}"),
            *(f"--checks={','.join(checks)}", "--generation-deterministic", "--no-color"),
            *("--continue-on-failure", "--request-timeout=15"),
            *(f"--include-operation-id={name}" for name in only),
            *(f"--exclude-operation-id={name}" for name in without),
        ]
        argv = [str(program), f"--config-file={self.config}", "run", document, *options]
        # It leaves its notes in the directory where it is started.
        with tempfile.TemporaryDirectory() as elsewhere:
            done = run(["env", "-C", elsewhere, *argv], check=False, timeout=PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
async def target(
    rest_cluster: Cluster,
    gateways: Callable[..., GatewayProcess],
    org: str,
    key: str,
    tmp_path: Path,
) -> AsyncIterator[Target]:
    """A gateway of the test's own, two machines, and afterwards none."""
    template = tmp_path / "quota.yaml"
    template.write_text(_QUOTA)
    inside = (
        f"--credentials={rest_cluster.paths.pki}",
        f"--artifacts=file://{tmp_path}/artifacts",
        f"--ssh-address=127.0.0.1:{free_port()}",
    )
    gateway = gateways(*RATES, f"--org-template={template}", *inside).up()
    async with Rest.open(gateway.base, key) as rest:
        machine, doomed = [
            (await rest.create(name)).body["machine_id"] for name in ("stays", "goes")
        ]
        await rest.eventually(machine, "running")
        config = tmp_path / "schemathesis.toml"
        config.write_text(_CONFIG.format(org=org, machine=machine, doomed=doomed))
        yield Target(gateway, key, config)
        left = await rest.ids()
        # A quota counts from a moment after it was made, with the namespace, by the first of them.
        assert len(left) <= MOST_MACHINES + 2
        for machine_id in left:
            gone = await rest.call("DELETE", f"/v1/machines/{machine_id}")
            assert gone.status in (200, 202), gone
        rest_cluster.kubectl("delete", "machines", "--all", "--wait=false", "--namespace", org)
    until(lambda: not rest_cluster.items("machines", namespace=org), "the machines to be gone")
    assert gateway.complaints() == []


BASIC = ("not_a_server_error", "status_code_conformance", "content_type_conformance")
WATCH = "watchMachineStatus"


async def test_our_own_document(target: Target):
    document = f"{target.gateway.base}/openapi.json"
    schemas = ("response_headers_conformance", "response_schema_conformance")
    report = target.run(
        document, checks=(*BASIC, *schemas, "allow_header_conformance"), without=(WATCH,)
    )
    assert _cases(report) > 200, report
    # The document tells what an event holds; schemathesis would take that for the event itself.
    target.run(document, checks=BASIC, only=(WATCH,))


MACHINES = (
    *("listMachines", "createMachine", "getMachine", "patchMachine", "deleteMachine"),
    *("sleepMachine", "wakeMachine", WATCH),
)


async def test_the_contract(target: Target):
    if not CONTRACT.exists():
        pytest.skip(f"the contract is not here: {CONTRACT.name} in {CONTRACT.parent.name}/")
    # Its schemas are closed, and our bodies have the members of all versions: they are held against it elsewhere.
    report = target.run(
        str(CONTRACT),
        checks=("not_a_server_error", "content_type_conformance"),
        only=MACHINES,
    )
    assert f"{len(MACHINES)} selected" in report, report
    assert _cases(report) > 150, report


def _cases(report: str) -> int:
    found = re.search(r"(\d+) generated", report)
    assert found, report
    return int(found[1])
