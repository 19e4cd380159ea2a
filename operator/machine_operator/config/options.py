"""Kinds of configuration values: how each is written by people, what is allowed, and what it means.

A value comes as text (flag, environment) or as YAML made of it (file). Both go through the same `parse`, which
says what is wrong; `allowed` says what would be right, in errors and in the documentation alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine_operator.api.durations import DurationError, format_duration, parse_autosleep
from machine_operator.kubevirt.authority import Authority, AuthorityError

__all__ = [
    "PREFIX",
    "AuthorityFile",
    "BadValue",
    "Kind",
    "PublicKey",
    "Setting",
    "address",
    "authority",
    "choice",
    "duration",
    "number",
    "public_key",
    "secret_url",
    "switch",
    "text",
    "whole",
]

PREFIX = "MACHINE_OPERATOR_"
"""Of all environment variables."""

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_KEY_TYPES = ("ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-")


class BadValue(Exception):
    """Something written is not allowed: the end of a sentence that begins with the name of the key."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value.

    Attributes:
        metavar: stands for the value in usage lines; "" for a switch, which takes none.
        allowed: what may be written, for people.
        parse: the value that something written means, or BadValue.
        show: how the value is written.
    """

    metavar: str
    allowed: str
    parse: Callable[[Any], Any]
    show: Callable[[Any], str] = str


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An SSH public key and the file that it was read from."""

    path: str
    line: str


@dataclass(frozen=True, slots=True)
class AuthorityFile:
    """An SSH authority and the file that its private key was read from."""

    path: str
    authority: Authority = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that can be set.

    Attributes:
        name: key in the file; flag and variable are made of it.
        kind: what may be written.
        default: as it would be written; None where it is not set, or found out at the start.
        help: one or two sentences for people.
        found: where a default that is found out comes from.
    """

    name: str
    kind: Kind
    default: str | None
    help: str
    found: str = "not set"

    @property
    def flag(self) -> str:
        """On the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def flag_off(self) -> str:
        """The flag that says no, of a switch."""
        return "--no-" + self.flag[2:]

    @property
    def variable(self) -> str:
        """In the environment."""
        return PREFIX + self.name.upper()


def whole(low: int, high: int) -> Kind:
    """A whole number within bounds."""

    def parse(raw: Any) -> int:
        written = str(raw).strip()
        if isinstance(raw, bool | float) or not re.fullmatch(r"[+-]?[0-9]{1,18}", written):
            raise BadValue(f"{_quoted(raw)} is no whole number")
        number = int(written)
        if not low <= number <= high:
            raise BadValue(f"{number} is too {'small' if number < low else 'large'}")
        return number

    return Kind("NUMBER", f"a whole number from {low} to {high}", parse)


def number(low: float, high: float) -> Kind:
    """A number within bounds."""

    def parse(raw: Any) -> float:
        try:
            found = float(str(raw).strip()) if not isinstance(raw, bool) else math.nan
        except ValueError:
            found = math.nan
        if not math.isfinite(found):
            raise BadValue(f"{_quoted(raw)} is no number")
        if not low <= found <= high:
            raise BadValue(f"{_quoted(raw)} is too {'small' if found < low else 'large'}")
        return found

    return Kind("NUMBER", f"a number from {low:g} to {high:g}", parse, lambda value: f"{value:g}")


def secret_url(*schemes: str) -> Kind:
    """A URL which may hold a password; it is shown without."""
    allowed = f"a URL of {' or '.join(f'{scheme}://' for scheme in schemes)}"

    def parse(raw: Any) -> str:
        written = str(raw).strip()
        scheme, colon, rest = written.partition("://")
        if not colon or scheme not in schemes or not rest or re.search(r"\s", written):
            # Not even a part of it is repeated: what looks wrong may be a password.
            raise BadValue("it is no such URL")
        return written

    return Kind("URL", allowed, parse, lambda url: re.sub(r"//[^/@]*@", "//***@", url))


def duration(low: str, high: str) -> Kind:
    """Seconds within bounds, in the syntax of `autosleep` but for `never`."""
    least, most = parse_autosleep(low), parse_autosleep(high)

    def parse(raw: Any) -> float:
        if isinstance(raw, bool | float) or not isinstance(raw, str | int):
            raise BadValue(f"{_quoted(raw)} is no duration")
        if str(raw).strip().lower() == "never":
            raise BadValue("never makes no sense here")
        try:
            seconds = parse_autosleep(str(raw))
        except DurationError:
            raise BadValue(f"{_quoted(raw)} is no duration") from None
        if not least <= seconds <= most:
            raise BadValue(f"{_quoted(raw)} is too {'short' if seconds < least else 'long'}")
        return float(seconds)

    allowed = f"a duration such as 90s, 5m or 1h30m, from {low} to {high}"
    return Kind("DURATION", allowed, parse, _show_duration)


def _show_duration(seconds: float) -> str:
    return format_duration(int(seconds)) if seconds else "0s"


def choice(*words: str) -> Kind:
    """One of some words."""

    def parse(raw: Any) -> str:
        word = str(raw).strip().lower()
        if word not in words:
            raise BadValue(f"{_quoted(raw)} is none of them")
        return word

    return Kind("|".join(words), " or ".join((", ".join(words[:-1]), words[-1])), parse)


def switch() -> Kind:
    """True or false."""

    def parse(raw: Any) -> bool:
        word = str(raw).strip().lower()
        if word not in (*_TRUE, *_FALSE):
            raise BadValue(f"{_quoted(raw)} is neither true nor false")
        return word in _TRUE

    return Kind("", "true or false", parse, lambda value: "true" if value else "false")


def text(metavar: str, allowed: str, *, pattern: str = r"\S.*", longest: int = 4096) -> Kind:
    """Some text of a given form."""

    def parse(raw: Any) -> str:
        if not isinstance(raw, str):
            raise BadValue(f"{raw!r} is not text; put it in quotes")
        if len(raw) > longest:
            raise BadValue(f"it has {len(raw)} characters, more than {longest}")
        if not re.fullmatch(pattern, raw):
            raise BadValue(f"{_quoted(raw)} is not of that form")
        return raw

    return Kind(metavar, allowed, parse)


def address() -> Kind:
    """Where to listen."""

    def parse(raw: Any) -> str:
        host, colon, port = str(raw).strip().rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise BadValue(f"{_quoted(raw)} does not end in a port")
        if ":" in bare and bare == host:
            raise BadValue(f"{_quoted(raw)} has an IPv6 address without brackets")
        if re.search(r"[\s/\[\]]", bare):
            raise BadValue(f"{_quoted(raw)} is no address to listen on")
        return f"{host}:{port}"

    allowed = (
        "HOST:PORT, such as 0.0.0.0:8080 or [::1]:8080; without HOST all addresses, port 0 is any"
    )
    return Kind("HOST:PORT", allowed, parse)


def public_key() -> Kind:
    """The path of a file with one SSH public key."""

    def parse(raw: Any) -> PublicKey:
        content = _text_of(raw)
        if "PRIVATE KEY" in content:
            raise BadValue(
                f"{raw} is a private key, which nobody else should have; name its .pub file"
            )
        lines = [line.strip() for line in content.splitlines() if line.strip()]
        keys = [line for line in lines if not line.startswith("#")]
        if len(keys) != 1:
            raise BadValue(f"{raw} has {len(keys)} keys instead of one")
        if not keys[0].startswith(_KEY_TYPES) or len(keys[0].split()) < 2:
            raise BadValue(f"{raw} has no public key of OpenSSH")
        return PublicKey(path=raw, line=keys[0])

    allowed = "the path of a file with one OpenSSH public key, such as ssh_user_ca.pub"
    return Kind("FILE", allowed, parse, lambda key: str(key.path))


def authority() -> Kind:
    """The path of a file with the private key of an SSH authority. Only the path is ever shown."""

    def parse(raw: Any) -> AuthorityFile:
        content = _text_of(raw)
        try:
            return AuthorityFile(path=raw, authority=Authority.load(content.encode()))
        except AuthorityError as error:
            hint = "; name the file without .pub" if content.startswith(_KEY_TYPES) else ""
            raise BadValue(f"{raw}: {error}{hint}") from None

    allowed = "the path of a file with an ed25519 private key of OpenSSH, without a passphrase"
    return Kind("FILE", allowed, parse, lambda file: str(file.path))


def _text_of(raw: Any) -> str:
    if not isinstance(raw, str):
        raise BadValue(f"{raw!r} is not a path")
    try:
        return Path(raw).expanduser().read_text()
    except OSError as error:
        raise BadValue(f"{raw} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadValue(f"{raw} is not a text file") from None
    except (ValueError, RuntimeError) as error:  # a NUL in it; somebody's home who does not exist
        raise BadValue(f"{_quoted(raw)} is no path: {error}") from None


def _quoted(raw: Any) -> str:
    written = str(raw)
    return repr(written if len(written) <= 60 else f"{written[:57]}...")
