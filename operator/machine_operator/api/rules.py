"""Rules of the Machine kind which need a sentence when they are broken.

The API server evaluates them as CEL (`x-kubernetes-validations`), where plain OpenAPI keywords
would answer with a regular expression or a bare number. Each rule that looks at one value only has
its twin in Python in `machine.py`, for those who build a spec without an API server; rules with
`oldSelf` need the stored object and live here only.

CEL notes. A rule with `oldSelf` runs on updates only. `messageExpression` shows the value; should
it fail, `message` is used. Numbers go into it by `format`, because the length of `string(number)`
is reckoned as unbounded. Every text with a rule has a maxLength and every list a maxItems in the
schema, since the API server estimates a rule's cost from them and refuses a CRD that could cost
too much.
"""

from dataclasses import dataclass
from typing import Any, Final

from machine_operator.api.durations import (
    AMOUNT_PATTERNS,
    AUTOSLEEP_HELP,
    AUTOSLEEP_PATTERN,
    MAX_SECONDS,
    UNIT_SECONDS,
)

__all__ = ["Rule", "kubernetes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One CEL rule: what must hold, and what to tell a person when it does not."""

    rule: str
    message: str
    message_expression: str | None = None
    field_path: str | None = None

    def to_dict(self) -> dict[str, str]:
        """The rule as an item of `x-kubernetes-validations`."""
        keys = {
            "rule": self.rule,
            "message": self.message,
            "messageExpression": self.message_expression,
            "fieldPath": self.field_path,
        }
        return {key: value for key, value in keys.items() if value is not None}


def kubernetes(*rules: Rule, **keywords: Any) -> dict[str, Any]:
    """Schema members for pydantic's `json_schema_extra`: rules, and x-kubernetes-* keywords.

    A keyword argument is written in snake_case: `list_type="map"` is `x-kubernetes-list-type`.
    """
    extra: dict[str, Any] = {
        f"x-kubernetes-{key.replace('_', '-')}": value for key, value in keywords.items()
    }
    if rules:
        extra["x-kubernetes-validations"] = [rule.to_dict() for rule in rules]
    return extra


def _quoted(text: str) -> str:
    """`text` as a CEL literal; the escapes of our regular expressions mean the same in CEL."""
    return "'" + text.replace("'", "\\'") + "'"


def _seconds() -> str:
    """CEL: the seconds of a text; `find` answers '' for a part which is not there."""
    return " + ".join(
        f"int('0' + self.find({_quoted(pattern)}).find('[0-9]+')) * {UNIT_SECONDS[unit]}"
        for unit, pattern in AMOUNT_PATTERNS.items()
    )


VCPU_STEP: Final = 0.25
VCPU_STEPS: Final = Rule(
    rule="self < 0.25 || self * 4.0 == double(int(self * 4.0))",
    message="vcpu must be a multiple of 0.25, such as 0.25, 0.5, 1 or 2.75",
    message_expression=(
        "'vcpu %s is not a multiple of 0.25; the nearest are %.2f and %.2f'"
        ".format([self, double(int(self * 4.0)) / 4.0, double(int(self * 4.0) + 1) / 4.0])"
    ),
)

STORAGE_GROWS: Final = Rule(
    rule="self >= oldSelf",
    message="storage_gib can grow but never shrink",
    message_expression=(
        "'storage_gib can grow but never shrink: it is %d, so use %d or more, not %d'"
        ".format([oldSelf, oldSelf, self])"
    ),
)

DESTROYED_STAYS: Final = Rule(
    rule="oldSelf != 'destroyed' || self == 'destroyed'",
    message=(
        "a destroyed machine cannot come back: leave desired_state at destroyed,"
        " or delete this machine and create another one"
    ),
)

AUTOSLEEP: Final = Rule(
    rule=f"self.matches({_quoted(AUTOSLEEP_PATTERN)})",
    message=AUTOSLEEP_HELP,
    message_expression=f"{_quoted(AUTOSLEEP_HELP)} + ' (got \"' + self + '\")'",
)

AUTOSLEEP_BOUND: Final = Rule(
    rule=f"{_seconds()} <= {MAX_SECONDS}",
    message=f"autosleep is longer than {MAX_SECONDS} seconds (292 years): use never to stay awake",
)

IMAGE_PATTERN: Final = "^[A-Za-z0-9][A-Za-z0-9._:/@-]*$"
IMAGE: Final = Rule(
    rule=f"self.matches({_quoted(IMAGE_PATTERN)})",
    message="image must be an image reference such as quay.io/containerdisks/debian:13",
)

STORAGE_CLASS_PATTERN: Final = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
STORAGE_CLASS: Final = Rule(
    rule=f"self.matches({_quoted(STORAGE_CLASS_PATTERN)})",
    message="storage_class must be the name of a StorageClass (see: kubectl get storageclass)",
)

STORAGE_CLASS_STAYS: Final = Rule(
    rule=(
        "!has(oldSelf.storage_class)"
        " || (has(self.storage_class) && self.storage_class == oldSelf.storage_class)"
    ),
    message="storage_class cannot change",
    message_expression=(
        "'storage_class cannot change once it is set, for the home disk lives there: restore \"'"
        " + oldSelf.storage_class + '\", or create another machine'"
    ),
    field_path=".storage_class",
)

SSH_KEY_PATTERN: Final = (
    "^(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)"
    "|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh[.]com)"
    " AAAA[A-Za-z0-9+/]+={0,2}( [^\\r\\n]*)?$"
)
SSH_KEY: Final = Rule(
    rule=f"self.matches({_quoted(SSH_KEY_PATTERN)})",
    message=(
        "an SSH key must be one line of a public key file such as ~/.ssh/id_ed25519.pub:"
        " type, key and comment, without options and without a line break at its end"
    ),
)

MAX_NAME_LENGTH: Final = 63
NAME: Final = Rule(
    rule=f"self.metadata.name.size() <= {MAX_NAME_LENGTH} && !self.metadata.name.contains('.')",
    message=f"a machine's name must have at most {MAX_NAME_LENGTH} characters and no dots",
    message_expression=(
        "'a machine\\'s name is its host name and a label value: \"' + self.metadata.name"
        f" + '\" must have at most {MAX_NAME_LENGTH} characters and no dots; use dashes'"
    ),
    field_path=".metadata.name",
)
