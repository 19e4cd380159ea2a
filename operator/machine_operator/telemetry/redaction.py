"""Secrets that got into a text by accident are cut out of it.

The operator makes private keys (seeds) and sends tokens. Neither is ever logged on purpose, but an error message can
quote a body or a header. What is recognised: PEM private keys, also where the end is missing, the line ends are
escaped, or all of it is in base64; bearer tokens, JSON web tokens and API keys of the gateway; the value of an
`Authorization` header in any notation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["redact", "redact_value"]

REDACTED: Final = "[redacted]"

_PATTERNS = (
    # Up to its end; where that is missing, all that follows.
    (
        re.compile(
            r"-----BEGIN (?P<what>[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?)-----"
            r"[^-]*(?:-(?!----)[^-]*)*(?:-----END [A-Z0-9 ]{0,40}-----)?"
        ),
        r"[redacted \g<what>]",
    ),
    # The words PRIVATE KEY in base64, at each of the three offsets, as in the data of a Secret.
    (
        re.compile(
            r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]*"
            r"(?:UFJJVkFURSBLRV|BSSVZBVEUgS0VZ|QUklWQVRFIEtFW)[A-Za-z0-9+/]*=*"
        ),
        REDACTED,
    ),
    # Digest and the like have several parts: all up to the closing quote, or the end of the line.
    (
        re.compile(
            r"(?P<name>\b(?:Proxy-)?Authorization\b(?:[\\\"']*\s*[:=]|[\\\"']+\s*,)\s*b?)"
            r"(?:(?P<quote>\\*[\"'])(?:(?!(?P=quote))[^\r\n])*|[^\r\n]+)",
            re.IGNORECASE,
        ),
        rf"\g<name>\g<quote>{REDACTED}",
    ),
    (
        re.compile(r"\b(?P<name>Bearer\s+)[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE),
        rf"\g<name>{REDACTED}",
    ),
    (re.compile(r"\bdsk-[a-z0-9]{12}-[A-Za-z0-9_-]{20,}"), REDACTED),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?"), REDACTED),
)

_SECRET_NAMES = re.compile(
    r"authorization|password|passwd|secret_?key|private_?key|^token$|_token$"
)


def redact(text: str) -> str:
    """`text` without what should not be read."""
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


def redact_value(name: str, value: Any) -> Any:
    """The value of a log field without what should not be read.

    Numbers stay numbers, mappings and lists keep their structure, all others become text.
    """
    if value is None:
        return None
    if _SECRET_NAMES.search(name.lower()):
        return REDACTED
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {redact(str(key)): redact_value(str(key), one) for key, one in value.items()}
    if isinstance(value, list | set | frozenset) or type(value) is tuple:
        return [redact_value("", one) for one in value]
    if isinstance(value, bytes):
        return redact(value.decode("utf-8", "backslashreplace"))
    return redact(str(value))
