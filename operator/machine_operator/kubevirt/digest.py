"""A short fingerprint of what is applied: equal content, equal digest, in every process and release of Python."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

__all__ = ["digest"]


def digest(content: Any) -> str:
    """16 hexadecimal digits over the canonical JSON of `content`."""
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
