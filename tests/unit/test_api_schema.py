"""From pydantic to structural schemas: each conversion, and that nothing unknown slips through."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from machine_operator.api.rules import Rule, kubernetes
from machine_operator.api.schema import SchemaError, structural_schema


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    """Told by
    the class.
    """

    count: int = Field(ge=0, description="How many.")


class Outer(BaseModel):
    """The whole."""

    required: str = Field(description="A text.", max_length=3, pattern="^a+$")
    share: float = Field(default=0.5, description="A share.")
    colour: Colour = Field(default=Colour.RED, description="Told by the field.")
    word: Literal["a", "b"] = Field(default="a", description="A word.")
    nothing: int | None = Field(default=None, description="Maybe.")
    at: datetime | None = Field(default=None, description="When.")
    inner: Inner | None = Field(default=None, description="Told by the field.")
    plain: Inner = Inner(count=1)
    many: tuple[Inner, ...] = Field(
        default=(),
        max_length=4,
        description="Many.",
        json_schema_extra=kubernetes(list_type="map", list_map_keys=["count"]),
    )


FIELDS: dict[str, Any] = structural_schema(Outer)["properties"]


def test_references_are_replaced_and_the_words_at_the_field_win() -> None:
    assert FIELDS["colour"] == {
        "description": "Told by the field.",
        "type": "string",
        "enum": ["red", "blue"],
        "default": "red",
    }
    assert FIELDS["inner"]["description"] == "Told by the field."
    assert FIELDS["inner"]["properties"]["count"]["minimum"] == 0


def test_docstrings_become_one_line() -> None:
    assert FIELDS["plain"]["description"] == "Told by the class."


def test_null_branches_and_empty_defaults_go() -> None:
    assert FIELDS["nothing"] == {"description": "Maybe.", "type": "integer", "format": "int64"}
    assert FIELDS["at"] == {"description": "When.", "type": "string", "format": "date-time"}
    assert "default" not in FIELDS["many"]


def test_formats_enums_and_limits() -> None:
    assert FIELDS["share"] == {
        "description": "A share.",
        "type": "number",
        "format": "double",
        "default": 0.5,
    }
    assert FIELDS["word"]["enum"] == ["a", "b"]
    assert (FIELDS["required"]["maxLength"], FIELDS["required"]["pattern"]) == (3, "^a+$")


def test_lists() -> None:
    assert FIELDS["many"]["items"]["required"] == ["count"]
    assert FIELDS["many"]["maxItems"] == 4
    assert FIELDS["many"]["x-kubernetes-list-map-keys"] == ["count"]


def test_only_fields_without_default_are_required() -> None:
    assert structural_schema(Outer)["required"] == ["required"]


class Mapping(BaseModel):
    labels: dict[str, str]


class Union(BaseModel):
    value: int | str


class Anything(BaseModel):
    value: Any


class Closed(BaseModel, extra="forbid"):
    value: int


class Exclusive(BaseModel):
    value: Annotated[int, Field(gt=0)]


class Multiple(BaseModel):
    value: Annotated[float, Field(multiple_of=0.25)]


class Pair(BaseModel):
    value: tuple[int, str]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Mapping, "Mapping.labels uses additionalProperties"),
        (Union, "Union.value is a union of 2 types"),
        (Anything, "Anything.value has no single type"),
        (Closed, "Closed uses additionalProperties"),
        (Exclusive, "Exclusive.value uses exclusiveMinimum"),
        (Multiple, "Multiple.value uses multipleOf"),
        (Pair, "Pair.value uses prefixItems"),
    ],
)
def test_what_a_structural_schema_cannot_say_is_an_error(model: type[BaseModel], told: str) -> None:
    with pytest.raises(SchemaError, match=told):
        structural_schema(model)


def test_rules_are_written_in_the_words_of_the_api() -> None:
    rule = Rule(rule="self > 0", message="m", message_expression="'m'", field_path=".a")
    assert kubernetes(rule, map_type="atomic") == {
        "x-kubernetes-map-type": "atomic",
        "x-kubernetes-validations": [
            {"rule": "self > 0", "message": "m", "messageExpression": "'m'", "fieldPath": ".a"}
        ],
    }
