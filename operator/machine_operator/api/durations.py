"""How long a machine may idle before it is put to sleep, as people write it.

The grammar: units w, d, h, m, s, each at most once, from large to small, run together (`5m`,
`2h30m`, `1w3d`); or a bare number of seconds (`1800`); or `never`, which is 0. Letters in any case;
blanks around it are trimmed. Every number has at most ten digits, so that arithmetic in 64 bits
(CEL in the API server) cannot overflow before the upper bound is checked.

The grammar exists twice, because two machines have to read it: `parse_autosleep` here, and
`AUTOSLEEP_PATTERN` with `AMOUNT_PATTERNS` for the CRD's rule in the API server. A property test
holds the two equal.
"""

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["MAX_SECONDS", "DurationError", "format_duration", "parse_autosleep"]

MAX_SECONDS: Final = 9_223_372_036
"""The longest autosleep, about 292 years: the seconds which fit 64 bits of nanoseconds."""

MAX_LENGTH: Final = 64
"""Characters of the text, blanks included."""

NEVER: Final = "never"
UNIT_SECONDS: Final[Mapping[str, int]] = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
AUTOSLEEP_HELP: Final = (
    "autosleep must be a duration such as 5m, 2h30m, 1w3d, "
    "a number of seconds such as 1800, or never"
)

_BLANKS: Final = " \t\r\n"
_BLANK_PATTERN: Final = r"[ \t\r\n]*"
_MAX_DIGITS: Final = 10
_NUMBER: Final = f"[0-9]{{1,{_MAX_DIGITS}}}"
_TOKEN: Final = re.compile(r"([0-9]+)([a-z]?)")


class DurationError(ValueError):
    """A text is not an autosleep duration, or a number of seconds has no such text."""


def parse_autosleep(text: str) -> int:
    """The seconds which `text` means; 0 means never.

    Raises:
        DurationError: `text` is not of the grammar, or longer than MAX_SECONDS.
    """
    if len(text) > MAX_LENGTH:
        raise DurationError(
            f"autosleep has {len(text)} characters, more than {MAX_LENGTH}; {AUTOSLEEP_HELP}"
        )
    word = text.strip(_BLANKS).lower()
    if word == NEVER:
        return 0
    seconds = sum(_amounts(text, word))
    if seconds > MAX_SECONDS:
        raise DurationError(
            f"autosleep {text!r} is {seconds} seconds, more than {MAX_SECONDS}; "
            "use never to stay awake"
        )
    return seconds


def format_duration(seconds: int) -> str:
    """The shortest text of the grammar for `seconds`: 0 is `never`, 5400 is `1h30m`.

    Raises:
        DurationError: `seconds` is negative or more than MAX_SECONDS.
    """
    if not 0 <= seconds <= MAX_SECONDS:
        raise DurationError(f"{seconds} seconds is no autosleep; use 0 (never) to {MAX_SECONDS}")
    if seconds == 0:
        return NEVER
    parts = []
    for unit, size in UNIT_SECONDS.items():
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def _amounts(text: str, word: str) -> list[int]:
    """The seconds of each part of `word`; errors name `text`, which is what the person wrote."""
    tokens = _TOKEN.findall(word)
    if not word or "".join(number + unit for number, unit in tokens) != word:
        raise DurationError(f"autosleep {text!r} is not understood; {AUTOSLEEP_HELP}")
    if any(len(number) > _MAX_DIGITS for number, _ in tokens):
        raise DurationError(
            f"autosleep {text!r} has a number of more than {_MAX_DIGITS} digits; {AUTOSLEEP_HELP}"
        )
    if len(tokens) == 1 and tokens[0][1] == "":
        return [int(tokens[0][0])]
    units = [unit for _, unit in tokens]
    if unknown := [unit for unit in units if unit not in UNIT_SECONDS]:
        wrong = f"the unit {unknown[0]!r}" if unknown[0] else "a number without a unit"
        raise DurationError(f"autosleep {text!r} has {wrong}; the units are w, d, h, m and s")
    ranks = [list(UNIT_SECONDS).index(unit) for unit in units]
    if ranks != sorted(set(ranks)):
        raise DurationError(
            f"autosleep {text!r} must name each unit once, from large to small: w, d, h, m, s"
        )
    return [int(number) * UNIT_SECONDS[unit] for number, unit in tokens]


def _either_case(text: str) -> str:
    # Character classes and not (?i): that flag also matches U+017F for "s".
    return "".join(f"[{letter}{letter.upper()}]" for letter in text)


def _grammar() -> str:
    """One branch per largest unit, as RE2 cannot look ahead; the last also takes bare seconds."""
    units = list(UNIT_SECONDS)
    branches = [_either_case(NEVER)]
    for index, first in enumerate(units):
        smaller = "".join(f"({_NUMBER}{_either_case(unit)})?" for unit in units[index + 1 :])
        branches.append(f"{_NUMBER}{_either_case(first)}{'' if smaller else '?'}{smaller}")
    return f"^{_BLANK_PATTERN}({'|'.join(branches)}){_BLANK_PATTERN}$"


AUTOSLEEP_PATTERN: Final = _grammar()
"""RE2 and Python: matches exactly the texts of the grammar, without the bound MAX_SECONDS."""

AMOUNT_PATTERNS: Final[Mapping[str, str]] = {
    unit: _NUMBER + _either_case(unit) + ("" if size > 1 else f"?{_BLANK_PATTERN}$")
    for unit, size in UNIT_SECONDS.items()
}
"""Per unit: finds its part in a text of AUTOSLEEP_PATTERN; "s" also finds bare seconds."""
