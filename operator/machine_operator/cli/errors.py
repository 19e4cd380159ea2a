"""One way to tell people that something went wrong: a sentence on stderr and a non-zero exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

__all__ = ["sentences"]


@contextmanager
def sentences(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors that are written for people into click's form; all others keep their traceback."""
    try:
        yield
    except kinds as error:
        raise click.ClickException(str(error)) from error
