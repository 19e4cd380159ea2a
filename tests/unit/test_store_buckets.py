"""Buckets: nothing is lost and nothing is counted twice, wherever the cuts are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine_operator.store.buckets import Amounts, Bucket, Granularity, cut, total, whole_seconds
from machine_operator.store.moments import from_milliseconds, milliseconds
from machine_operator.store.segments import Segment, SegmentKind, Sizes

DAY = datetime(2026, 3, 1, tzinfo=UTC)
SMALL, LARGE = Sizes(1000, 2048, 10), Sizes(250, 512, 20)
AMOUNTS = ("awake_ms", "cpu_millicore_ms", "memory_mib_ms", "storage_mib_ms")

moments = st.datetimes(
    datetime(2026, 2, 27), datetime(2026, 3, 4), timezones=st.just(UTC)
)  # microseconds and all
sizes = st.builds(Sizes, st.integers(0, 64_000), st.integers(0, 1_000_000), st.integers(0, 10_000))


@st.composite
def segment(draw: st.DrawFn) -> Segment:
    began, seen = sorted((draw(moments), draw(moments)))
    kind = draw(st.sampled_from(("awake", "storage")))
    ended = draw(st.sampled_from((seen, None)))
    uid = draw(st.sampled_from(("a", "b")))
    return Segment(uid, kind, 1, "acme", f"dm-{uid}", draw(sizes), began, ended, seen)


def one(
    begin: datetime, end: datetime, *, kind: SegmentKind = "awake", sizes: Sizes = SMALL
) -> Segment:
    return Segment("a", kind, 1, "acme", "dm-a", sizes, begin, end, end)


def hours(*numbers: float) -> list[datetime]:
    return [DAY + timedelta(hours=number) for number in numbers]


def added(buckets: list[Bucket]) -> dict[str, int]:
    return {name: sum(getattr(b, name) for b in buckets) for name in AMOUNTS}


def as_dict(amounts: Amounts) -> dict[str, int]:
    return {name: getattr(amounts, name) for name in AMOUNTS}


def test_a_segment_over_three_hours_is_in_three_buckets():
    zero, half, two_and_half, three = hours(0, 0.5, 2.5, 3)
    buckets = cut([one(half, two_and_half)], begin=zero, end=three, granularity="hour")
    assert [(b.begin.hour, b.end.hour, b.awake_ms) for b in buckets] == [
        (0, 1, 1_800_000),
        (1, 2, 3_600_000),
        (2, 3, 1_800_000),
    ]
    assert buckets[0] == Bucket(
        machine_id="dm-a",
        begin=zero,
        end=hours(1)[0],
        awake_ms=1_800_000,
        cpu_millicore_ms=1_800_000 * 1000,
        memory_mib_ms=1_800_000 * 2048,
        storage_mib_ms=0,
        window_count=1,
        last_window_end=hours(1)[0],
        sizes=SMALL,
    )


def test_first_and_last_bucket_end_with_the_period():
    (bucket,) = cut([one(*hours(0, 9))], begin=hours(3.25)[0], end=hours(5)[0], granularity="day")
    assert [bucket.begin, bucket.end] == hours(3.25, 5)
    assert bucket.awake_ms == 1.75 * 3_600_000


def test_disk_counts_in_mib_and_only_the_disk():
    (bucket,) = cut(
        [one(*hours(0, 1), kind="storage")], begin=DAY, end=hours(24)[0], granularity="day"
    )
    assert added([bucket]) == {
        "awake_ms": 0,
        "cpu_millicore_ms": 0,
        "memory_mib_ms": 0,
        "storage_mib_ms": 3_600_000 * 10_240,
    }


def test_bucket_tells_its_windows_and_the_last_ones_sizes():
    segments = [one(*hours(0.5, 0.75), sizes=LARGE), one(*hours(0.1, 0.2))]
    (bucket,) = cut(segments, begin=DAY, end=hours(1)[0], granularity="hour")
    assert (bucket.window_count, bucket.sizes) == (2, LARGE)
    assert bucket.last_window_end == hours(0.75)[0]


def test_segment_of_no_length_and_period_of_no_length_are_nothing():
    assert cut([one(*hours(1, 1))], begin=DAY, end=hours(2)[0], granularity="hour") == []
    assert cut([one(*hours(0, 2))], begin=hours(1)[0], end=hours(1)[0], granularity="hour") == []
    assert cut([one(*hours(0, 2))], begin=hours(1)[0], end=DAY, granularity="hour") == []


@given(st.lists(segment(), max_size=6), moments, moments)
def test_sums_are_the_same_whatever_the_cut(segments, one_end, other_end):
    begin, end = sorted((one_end, other_end))
    expected = dict.fromkeys(AMOUNTS, 0)
    for each in segments:
        length = max(
            0,
            min(milliseconds(each.end), milliseconds(end))
            - max(milliseconds(each.began_at), milliseconds(begin)),
        )
        if each.kind == "awake":
            expected["awake_ms"] += length
            expected["cpu_millicore_ms"] += length * each.sizes.vcpu_millis
            expected["memory_mib_ms"] += length * each.sizes.memory_mib
        else:
            expected["storage_mib_ms"] += length * each.sizes.storage_gib * 1024
    assert as_dict(total(segments, begin=begin, end=end)) == expected
    for granularity in ("hour", "day"):
        buckets = cut(segments, begin=begin, end=end, granularity=granularity)
        assert added(buckets) == expected
        assert buckets == sorted(buckets, key=lambda b: (b.machine_id, b.begin))
        for bucket in buckets:
            fits(bucket, granularity)


def fits(bucket: Bucket, granularity: Granularity) -> None:
    """It is within one hour or day, and tells of nothing outside."""
    assert bucket.begin < bucket.last_window_end <= bucket.end
    last = bucket.end - timedelta(milliseconds=1)
    units = ("year", "month", "day", "hour")[: 4 if granularity == "hour" else 3]
    assert all(getattr(bucket.begin, unit) == getattr(last, unit) for unit in units), bucket


@given(st.lists(segment(), max_size=5), st.lists(moments, min_size=2, max_size=5))
def test_periods_that_adjoin_add_up_to_the_whole(segments, borders):
    borders.sort()
    parts: list[Bucket] = []
    for begin, end in pairwise(borders):
        parts += cut(segments, begin=begin, end=end, granularity="hour")
    assert added(parts) == as_dict(total(segments, begin=borders[0], end=borders[-1]))


@given(st.lists(st.integers(0, 10**15), max_size=20))
def test_whole_seconds_add_up(amounts):
    seconds = whole_seconds(amounts)
    assert sum(seconds) == sum(amounts) // 1000
    assert all(abs(s * 1000 - a) < 1000 for s, a in zip(seconds, amounts, strict=True))


@given(st.datetimes(timezones=st.just(UTC)))
def test_moments_come_back_to_the_millisecond(moment):
    back = from_milliseconds(milliseconds(moment))
    assert timedelta(0) <= moment - back < timedelta(milliseconds=1)


def test_moment_without_a_time_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        milliseconds(datetime(2026, 3, 1))
