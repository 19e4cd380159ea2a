"""Everything that the routes of a dialect need, put together once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from machine_operator.gateway.changes import Changes, NoNamespace
from machine_operator.gateway.failures import from_kube, runtime_unavailable
from machine_operator.gateway.idempotency import Idempotency
from machine_operator.gateway.identity import Authenticator, Authorizer, Caller, OrgResolver, Verb
from machine_operator.gateway.inside import Inside
from machine_operator.gateway.limits import RateLimiter
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.marks import Freshness
from machine_operator.gateway.orgs import Orgs
from machine_operator.gateway.problems import Scope
from machine_operator.gateway.settings import GatewaySettings
from machine_operator.gateway.views import MachineView
from machine_operator.kube.errors import KubeError
from machine_operator.store.ledger import UsageLedger

__all__ = ["Admitted", "Gateway"]


@dataclass(frozen=True, slots=True)
class Admitted:
    """Somebody who may do what they ask for, in an organisation."""

    caller: Caller
    org: str


@dataclass(slots=True)
class Gateway:
    """The services of one gateway process.

    Attributes:
        settings: what the administrator has set.
        authenticator, resolver, authorizer: who calls, for which organisation, and what they may do.
        limiter: how often.
        machines: what there is; `freshness` waits for what other replicas wrote.
        changes: what is written; `idempotency` sees to it that it is written once.
        orgs: sees to it that an organisation has its namespace.
        ledger: what was used.
        draining: set when this process is about to end.
        inside: what leads into machines; None where no credentials are set.
    """

    settings: GatewaySettings
    authenticator: Authenticator
    resolver: OrgResolver
    authorizer: Authorizer
    limiter: RateLimiter
    machines: Machines
    freshness: Freshness
    changes: Changes
    idempotency: Idempotency
    orgs: Orgs
    ledger: UsageLedger
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    inside: Inside | None = None

    async def admit(self, request: Request, *, verb: Verb, scopes: Iterable[Scope]) -> Admitted:
        """Who calls, once it is clear that they may: authentication, organisation, rights, rate.

        Raises:
            GatewayError: they may not, or not now.
        """
        caller = self.authenticator.authenticate(request.headers)
        org = self.resolver.resolve(caller, request.headers.get("x-dedalus-org-id"))
        await self.authorizer.allow(caller, org, verb)
        for scope in scopes:
            await self.limiter.check(org, scope)
        return Admitted(caller, org)

    async def create(
        self, org: str, name: str, spec: Mapping[str, Any], *, request_hash: str | None
    ) -> MachineView:
        """A new machine in its organisation's namespace, which is made where it is missing.

        Raises:
            GatewayError: it cannot be made.
        """
        try:
            await self.orgs.ensure(org)
            return await self.changes.create(org, name, spec, request_hash=request_hash)
        except NoNamespace as error:
            self.orgs.forget(org)
            raise runtime_unavailable() from error
        except KubeError as error:
            raise from_kube(error) from error
