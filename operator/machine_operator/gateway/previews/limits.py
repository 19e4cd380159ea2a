"""What a preview may cost, and how long anybody waits for anybody."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PreviewLimits"]


@dataclass(frozen=True, slots=True)
class PreviewLimits:
    """Of one gateway.

    Attributes:
        visits: requests and WebSockets at once.
        visits_each: the same, of one preview.
        head_seconds: for the head of the guest's answer, once it has the request.
        body_seconds: without a byte of a request's body, from the client or taken by the guest.
        long_seconds: after which a request keeps its machine awake, and is watched for its client's going away.
        starting_seconds: after a wake in which a port that refuses is tried again.
        idle_seconds: for which a stream without work is kept.
    """

    visits: int = 4096
    visits_each: int = 256
    head_seconds: float = 60.0
    body_seconds: float = 60.0
    long_seconds: float = 1.0
    starting_seconds: float = 30.0
    idle_seconds: float = 60.0
