"""Moments: lossless, in UTC, and equal moments are equal texts."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine_operator.api.timestamps import format_timestamp, parse_timestamp

ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
# One day from both ends, where a change of zone would leave the calendar.
MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=ZONES)


@settings(deadline=None)
@given(MOMENTS, ZONES)
def test_round_trip_whatever_the_zone(moment: datetime, other: timezone) -> None:
    text = format_timestamp(moment)
    assert parse_timestamp(text) == moment
    assert format_timestamp(moment.astimezone(other)) == text


def test_forms() -> None:
    moment = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
    assert format_timestamp(moment) == "2026-03-01T10:00:00Z"
    assert format_timestamp(moment.replace(microsecond=1500)) == "2026-03-01T10:00:00.001500Z"
    assert parse_timestamp("2026-03-01T11:00:00.123456789+01:00").microsecond == 123456


def test_a_moment_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        format_timestamp(datetime(2026, 3, 1))
    with pytest.raises(ValueError, match="no time zone"):
        parse_timestamp("2026-03-01T10:00:00")
