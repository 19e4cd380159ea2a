"""Log files of the components: appended to, bounded in size, readable by `local logs`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO

__all__ = ["bound_logs", "open_log", "tail"]

_LIMIT = 32 * 2**20


def open_log(directory: Path, name: str) -> BinaryIO:
    """The log of a component, open for appending."""
    directory.mkdir(parents=True, exist_ok=True)
    return (directory / f"{name}.log").open("ab")


def bound_logs(directory: Path, *, limit: int = _LIMIT) -> None:
    """Keep each log below `limit` bytes: the old text is copied to `.1`, and the file cut.

    The writers hold the file open in append mode, so they go on at its new end.
    """
    for path in directory.glob("*.log"):
        if path.stat().st_size > limit:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)


def tail(path: Path, *, lines: int) -> str:
    """The last lines of a file ("" where there is none)."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 400 * lines - 4000))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
