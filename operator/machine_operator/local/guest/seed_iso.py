"""The NoCloud seed as an ISO 9660 image, which both cloud-init and our small guest read.

Rock Ridge and Joliet carry the real file names: `user-data` is not a name that plain ISO 9660 allows.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pycdlib

__all__ = ["VOLUME", "write_seed"]

# cloud-init and the guest look for a file system with this label.
VOLUME = "cidata"


def write_seed(
    path: Path, *, user_data: bytes, meta_data: bytes, network_config: bytes | None = None
) -> None:
    """Write a NoCloud seed; an existing file is replaced in one step.

    Args:
        path: the ISO image to write. It has secrets in it (host keys), so only its owner may read it.
        user_data: "#cloud-config" and a line of JSON, or anything else that cloud-init takes.
        meta_data: JSON or YAML with at least instance-id.
        network_config: cloud-init's network configuration, if any.
    """
    files = {"user-data": user_data, "meta-data": meta_data}
    if network_config is not None:
        files["network-config"] = network_config
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=VOLUME)
    for number, (name, data) in enumerate(files.items()):
        iso.add_fp(
            BytesIO(data),
            len(data),
            f"/FILE{number}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
        )
    draft = path.with_name(f".{path.name}.new")
    draft.touch(mode=0o600)
    iso.write(str(draft))
    iso.close()
    draft.replace(path)
