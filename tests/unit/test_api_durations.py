"""The autosleep grammar: what it accepts, what it means, and that CRD and parser agree."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from machine_operator.api.durations import (
    AMOUNT_PATTERNS,
    AUTOSLEEP_PATTERN,
    MAX_LENGTH,
    MAX_SECONDS,
    UNIT_SECONDS,
    DurationError,
    format_duration,
    parse_autosleep,
)

unhurried = settings(deadline=None)

SIZES = dict(UNIT_SECONDS)
PARTS = st.dictionaries(st.sampled_from(list(SIZES)), st.integers(0, 9_999), min_size=1)
# Everything the grammar is made of, and its look-alikes: U+017F folds to "s", U+212A to "k".
ALPHABET = "0123456789wdhmsWDHMSneverNEVER \t\r\n\x0b\u00a0-+.,_\u017f\u212a\u0663"
NUMBERS = st.integers(0, 99_999_999_999).map(str) | st.integers(0, 99).map(str)
WORDS = st.lists(st.tuples(NUMBERS, st.sampled_from(["", *"wdhmsWDHMSx"])), max_size=5).map(
    lambda parts: "".join(number + unit for number, unit in parts)
)
BLANKS = st.text(" \t\r\n\x0b", max_size=2)
TEXTS = st.one_of(
    st.text(ALPHABET, max_size=MAX_LENGTH + 2),
    st.tuples(BLANKS, WORDS, BLANKS).map("".join),
    st.integers(0, MAX_SECONDS + 9).map(lambda n: format_duration(min(n, MAX_SECONDS)).title()),
)


def accepted_by_crd(text: str) -> bool:
    """What the API server does with AUTOSLEEP, AUTOSLEEP_BOUND and maxLength, in Python."""
    # RE2's $ is the end of the text only, as Python's \Z.
    if len(text) > MAX_LENGTH or not re.search(AUTOSLEEP_PATTERN.replace("$", r"\Z"), text):
        return False
    return amount_in_crd(text) <= MAX_SECONDS


def amount_in_crd(text: str) -> int:
    total = 0
    for unit, pattern in AMOUNT_PATTERNS.items():
        part = re.search(pattern.replace("$", r"\Z"), text)
        digits = re.search("[0-9]+", part.group()) if part else None
        total += int("0" + (digits.group() if digits else "")) * UNIT_SECONDS[unit]
    return total


def accepted_by_parser(text: str) -> bool:
    try:
        parse_autosleep(text)
    except DurationError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("15m", 900),
        ("2h", 7_200),
        ("2h30m", 9_000),
        ("7d3h4s", 7 * 86_400 + 3 * 3_600 + 4),
        ("1w3d", 10 * 86_400),
        ("1800", 1_800),
        (" 5M ", 300),
        ("\t1W\n", 604_800),
        ("never", 0),
        (" NeVer", 0),
        ("0", 0),
        ("0s", 0),
        ("0005m", 300),
        ("9223372036", MAX_SECONDS),
        ("15250w1d23h47m16s", MAX_SECONDS),
    ],
)
def test_meaning(text: str, seconds: int) -> None:
    assert parse_autosleep(text) == seconds
    assert accepted_by_crd(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not understood"),
        ("  ", "is not understood"),
        ("soon", "is not understood"),
        ("-5s", "is not understood"),
        ("30s junk", "is not understood"),
        ("5 m", "is not understood"),
        ("1.5h", "is not understood"),
        ("never5m", "is not understood"),
        ("\u0665m", "is not understood"),
        ("5\u017f", "is not understood"),
        ("5x", "the unit 'x'"),
        ("5m30", "a number without a unit"),
        ("3m4h", "from large to small"),
        ("3m4m", "each unit once"),
        ("00000000005s", "more than 10 digits"),
        ("9223372037", "more than 9223372036"),
        ("9999999999w", "more than 9223372036"),
        ("15250w1d23h47m17s", "use never to stay awake"),
        ("1" + " " * MAX_LENGTH, "65 characters"),
    ],
)
def test_refusals_say_what_is_wrong(text: str, told: str) -> None:
    with pytest.raises(DurationError, match=re.escape(told)):
        parse_autosleep(text)
    assert not accepted_by_crd(text)


@unhurried
@given(st.integers(0, MAX_SECONDS))
def test_round_trip(seconds: int) -> None:
    text = format_duration(seconds)
    assert parse_autosleep(text) == seconds
    assert accepted_by_crd(text)


@unhurried
@given(st.integers(1, MAX_SECONDS))
def test_canonical_text_has_no_idle_part(seconds: int) -> None:
    parts = re.findall(r"([0-9]+)([wdhms])", format_duration(seconds))
    assert all(not count.startswith("0") for count, _ in parts)
    smaller = {"d": 7, "h": 24, "m": 60, "s": 60}
    assert all(int(count) < smaller.get(unit, MAX_SECONDS) for count, unit in parts)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "never"), (300, "5m"), (1_800, "30m"), (90_061, "1d1h1m1s")]
)
def test_canonical_texts(seconds: int, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("seconds", [-1, MAX_SECONDS + 1])
def test_nothing_to_format(seconds: int) -> None:
    with pytest.raises(DurationError, match="is no autosleep"):
        format_duration(seconds)


@unhurried
@given(PARTS)
def test_units_add_up_in_descending_order(parts: dict[str, int]) -> None:
    ordered = [unit for unit in SIZES if unit in parts]
    text = "".join(f"{parts[unit]}{unit}" for unit in ordered)
    total = sum(parts[unit] * SIZES[unit] for unit in ordered)
    assert total <= MAX_SECONDS
    assert parse_autosleep(text) == total


@unhurried
@given(PARTS.filter(lambda parts: len(parts) > 1), st.data())
def test_any_other_order_is_refused(parts: dict[str, int], data: st.DataObject) -> None:
    ordered = [unit for unit in SIZES if unit in parts]
    shuffled = data.draw(st.permutations(ordered).filter(lambda units: units != ordered))
    text = "".join(f"{parts[unit]}{unit}" for unit in shuffled)
    assert not accepted_by_parser(text)
    assert not accepted_by_crd(text)


@unhurried
@given(PARTS, st.data())
def test_a_unit_twice_is_refused(parts: dict[str, int], data: st.DataObject) -> None:
    ordered = [unit for unit in SIZES if unit in parts]
    twice = data.draw(st.sampled_from(ordered))
    text = "".join(f"{parts[unit]}{unit}" * (1 + (unit == twice)) for unit in ordered)
    assert not accepted_by_parser(text)
    assert not accepted_by_crd(text)


@unhurried
@given(st.integers(0, MAX_SECONDS), st.text(" \t\r\n", max_size=5), st.text(" \t\r\n", max_size=5))
def test_case_and_blanks_do_not_matter(seconds: int, before: str, after: str) -> None:
    text = format_duration(seconds)
    assert parse_autosleep(f"{before}{text.upper()}{after}") == seconds


@settings(deadline=None, max_examples=300)
@given(TEXTS)
@example("5m\n")
@example("5m\x0b")
@example("9223372036s")
@example("9223372037s")
@example("12345678901s")
@example("\u017f")
def test_crd_and_parser_agree(text: str) -> None:
    assert accepted_by_crd(text) == accepted_by_parser(text)
    if accepted_by_parser(text):
        assert amount_in_crd(text) == parse_autosleep(text)
