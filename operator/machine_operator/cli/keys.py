"""`machine-operator keys …`: API keys of the gateway, as Secrets, with the rights of whoever runs it.

No gateway has to run. A token is shown once, alone on stdout, so that it can be captured: KEY=$(machine-operator keys
create --org acme).
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from machine_operator.api.timestamps import format_timestamp
from machine_operator.cli.errors import sentences
from machine_operator.config.options import BadValue, duration
from machine_operator.gateway.keys import (
    CREATED,
    DESCRIPTION,
    KEY_LABEL,
    KEYS_NAMESPACE,
    LAST_USED,
    SCOPES,
    ApiKey,
    NewKey,
    UnreadableKeyError,
    key_id,
    new_key,
    read_key,
    secret_name,
)
from machine_operator.gateway.orgs import ORG_LABEL, org_fault
from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.errors import AlreadyExists, KubeError, NotFound
from machine_operator.kube.resources import SECRETS

__all__ = ["keys"]

Object = dict[str, Any]
T = TypeVar("T")
Open = Callable[[str | None], Awaitable[KubeClient]]

_LIFE = duration("1m", "520w")
_LONGEST_DESCRIPTION = 256


class KeysError(Exception):
    """A sentence for whoever runs the command."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the keys are, and how to get there."""

    kubeconfig: str | None
    namespace: str
    open: Open

    def run(self, work: Callable[[KubeClient], Awaitable[T]]) -> T:
        """Do something with an open client."""

        async def session() -> T:
            async with await self.open(self.kubeconfig) as client:
                return await work(client)

        with sentences(KubeError, KeysError):
            return asyncio.run(session())


async def _open(kubeconfig: str | None) -> KubeClient:
    return KubeClient(await connect(kubeconfig), user_agent="machine-operator-keys")


@click.group()
def keys() -> None:
    """API keys of the gateway: each belongs to one org, which is a namespace."""


def _access(command: Callable[..., None]) -> Callable[..., None]:
    """Adds `--kubeconfig` and `--namespace`, and hands the command what they mean."""

    @click.option("--kubeconfig", metavar="FILE", help="How to reach the cluster.")
    @click.option(
        "--namespace",
        default=KEYS_NAMESPACE,
        show_default=True,
        help="Where the gateway, and so the keys, are.",
    )
    @functools.wraps(command)
    def with_access(*, kubeconfig: str | None, namespace: str, **rest: Any) -> None:
        # The context's object is another way to open a client, for whoever has no kubeconfig.
        opener: Open = click.get_current_context().obj or _open
        command(Access(kubeconfig, namespace, opener), **rest)

    return with_access


def _org(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    fault = org_fault(value) if value is not None else None
    if fault is not None:
        raise click.BadParameter(f"{value!r} cannot be an org: {fault}")
    return value


def _scopes(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if value not in SCOPES:
            known = "".join(f"\n  {name:<16}{what}" for name, what in SCOPES.items())
            raise click.BadParameter(f"there is no scope {value!r}; there are:{known}")
    return values or ("*",)


def _life(_: click.Context, __: click.Parameter, value: str) -> float | None:
    if value.strip().lower() == "never":
        return None
    try:
        seconds: float = _LIFE.parse(value)
    except BadValue as error:
        raise click.BadParameter(f"{error}; allowed: never, or {_LIFE.allowed}") from None
    return seconds


def _description(_: click.Context, __: click.Parameter, value: str) -> str:
    if len(value) > _LONGEST_DESCRIPTION:
        raise click.BadParameter(
            f"it has {len(value)} characters, more than {_LONGEST_DESCRIPTION}"
        )
    return value


# ---- create


@keys.command()
@_access
@click.option("--org", required=True, callback=_org, help="Whose key it is: a namespace.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    callback=_scopes,
    metavar="SCOPE",
    help=f"What it may do; may be repeated. One of {', '.join(SCOPES)}.  [default: *]",
)
@click.option(
    "--expires",
    "life",
    default="never",
    show_default=True,
    callback=_life,
    metavar="DURATION",
    help="How long it is good for, such as 90d or 12h.",
)
@click.option("--description", default="", callback=_description, help="What it is for.")
def create(
    access: Access, *, org: str, scopes: tuple[str, ...], life: float | None, description: str
) -> None:
    """Make a key and print its token, this once."""
    now = datetime.now(UTC).replace(microsecond=0)
    until = None if life is None else now + timedelta(seconds=life)

    def make() -> NewKey:
        return new_key(org, scopes=scopes, now=now, expires_at=until, description=description)

    made = access.run(lambda client: _create(client, access.namespace, make))
    expiry = "never expires" if until is None else f"expires {format_timestamp(until)}"
    click.echo(
        f"API key {made.id} of org {org}: {', '.join(sorted(scopes))}; {expiry}. "
        "This is the only time that it is shown.",
        err=True,
    )
    click.echo(made.token)


async def _create(client: KubeClient, namespace: str, make: Callable[[], NewKey]) -> NewKey:
    made = make()
    try:
        await client.create(SECRETS, made.secret, namespace=namespace)
    except AlreadyExists as error:
        raise KeysError(f"another key has the id {made.id}; run the command again") from error
    except NotFound as error:
        raise KeysError(
            f"there is no namespace {namespace}: install the operator first, "
            "or say with --namespace where it is"
        ) from error
    return made


# ---- list


@keys.command(name="list")
@_access
@click.option("--org", callback=_org, help="Only the keys of this org.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show(access: Access, *, org: str | None, as_json: bool) -> None:
    """Show which keys there are; never their tokens, which nobody has."""
    found = access.run(lambda client: _secrets(client, access.namespace, org))
    now = datetime.now(UTC).timestamp()
    rows = []
    for secret in found:
        try:
            rows.append(_row(read_key(secret), secret["metadata"], now))
        except UnreadableKeyError as error:
            name = secret["metadata"]["name"]
            click.echo(
                f"Warning: Secret {name} is no API key and is not accepted: {error}", err=True
            )
    rows.sort(key=lambda row: (row["org"], row["created_at"] or "", row["id"]))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    lines: list[tuple[str, ...]] = [("ID", "ORG", "SCOPES", "CREATED", "EXPIRES", "LAST USED")]
    lines += [_cells(row) for row in rows]
    for line in _aligned(lines) if rows else ["there are no API keys"]:
        click.echo(line)


def _row(key: ApiKey, metadata: Object, now: float) -> Object:
    annotations = metadata.get("annotations") or {}
    expires = None if key.expires_at is None else datetime.fromtimestamp(key.expires_at, UTC)
    return {
        "id": key.id,
        "org": key.org,
        "scopes": sorted(key.scopes),
        "created_at": annotations.get(CREATED) or metadata.get("creationTimestamp"),
        "expires_at": None if expires is None else format_timestamp(expires),
        "expired": key.expires_at is not None and key.expires_at <= now,
        "last_used_at": annotations.get(LAST_USED),
        "description": annotations.get(DESCRIPTION, ""),
    }


def _cells(row: Object) -> tuple[str, ...]:
    expires = row["expires_at"] or "never"
    return (
        row["id"],
        row["org"],
        ",".join(row["scopes"]),
        row["created_at"] or "-",
        f"{expires} (expired)" if row["expired"] else expires,
        row["last_used_at"] or "-",
    )


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """In columns, as wide as what is in them: a table that wraps cannot be cut and grepped."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


async def _secrets(client: KubeClient, namespace: str, org: str | None) -> list[Object]:
    selector = f"{KEY_LABEL}=true" + (f",{ORG_LABEL}={org}" if org is not None else "")
    answer = await client.list(SECRETS, namespace=namespace, label_selector=selector)
    return list(answer.get("items") or [])


# ---- revoke


@keys.command()
@_access
@click.argument("key", metavar="ID", required=False)
@click.option("--org", callback=_org, help="Whose key it must be; with --all, whose keys go.")
@click.option("--all", "everything", is_flag=True, help="All keys of the org.")
def revoke(access: Access, *, key: str | None, org: str | None, everything: bool) -> None:
    """Delete a key; gateways refuse it from the next moment on."""
    if everything:
        if key is not None or org is None:
            raise click.UsageError("--all takes --org ORG and no ID")
        gone = access.run(lambda client: _revoke_all(client, access.namespace, org))
        click.echo(f"{len(gone)} API keys of org {org} are revoked", err=not gone)
        return
    if key is None:
        raise click.UsageError("say which key: ID, or --org ORG --all")
    identity = key_id(key)
    if identity is None:
        # What was given may be most of a token: it is not repeated.
        raise click.UsageError(
            "that is no id of a key: 12 letters and digits, as `machine-operator keys list` shows"
        )
    of = access.run(lambda client: _revoke(client, access.namespace, identity, org))
    click.echo(f"API key {identity} of org {of} is revoked")


async def _revoke(client: KubeClient, namespace: str, identity: str, org: str | None) -> str:
    missing = f"there is no API key {identity} in namespace {namespace}"
    try:
        found = await client.get(SECRETS, secret_name(identity), namespace=namespace)
        labels = found["metadata"].get("labels") or {}
        if labels.get(KEY_LABEL) != "true":
            raise KeysError(f"{missing}; its Secret does not have the label {KEY_LABEL}")
        owner = str(labels.get(ORG_LABEL) or "?")
        if org not in (None, owner):
            raise KeysError(f"API key {identity} is one of org {owner}, not of {org}")
        await _delete(client, namespace, found)
    except NotFound as error:
        raise KeysError(missing) from error
    return owner


async def _revoke_all(client: KubeClient, namespace: str, org: str) -> list[str]:
    gone = []
    for secret in await _secrets(client, namespace, org):
        try:
            await _delete(client, namespace, secret)
        except NotFound:
            continue  # somebody else did it
        gone.append(secret["metadata"]["name"])
    return gone


async def _delete(client: KubeClient, namespace: str, secret: Object) -> None:
    metadata = secret["metadata"]
    await client.delete(SECRETS, metadata["name"], namespace=namespace, uid=metadata["uid"])
