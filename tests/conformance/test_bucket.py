"""Artifacts in a bucket of S3, with s3fs in an environment of its own: it is no dependency of ours by default."""

from __future__ import annotations

import json

from tests.cluster.support import run
from tests.conformance.environments import CLIENTS, client_python


def test_artifacts_in_a_bucket() -> None:
    python = client_python("s3")
    done = run([str(python), "-s", "-B", str(CLIENTS / "bucket.py")], timeout=120.0)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["small"] == [6, True]
    assert seen["large"] == [256 * 4096 * 60, True]
    assert seen["there"] == ["arti/facts/-1/art-1", "arti/facts/-2/art-2"]
    assert seen["middle"] == "bcd"
    assert seen["too large"]
    assert seen["missing"]
    assert seen["left"] == ["arti/facts/-2/art-2"]
    assert seen["unreachable"] not in ("", "written")
    assert "hidden" not in seen["unreachable"]
