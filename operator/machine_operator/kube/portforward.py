"""KubeVirt's port-forward: one TCP connection into a VM, through kube-apiserver.

A plain WebSocket of binary messages whose boundaries mean nothing. virt-api connects before it upgrades, so a port
that nobody listens on is a failed request. There is no half-close: when the guest's side ends, the socket drops
without a close frame, which is the end of the stream and no error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import Unreachable, from_status

__all__ = ["portforward"]

_PROTOCOL = "plain.kubevirt.io"

# The WebSocket client does not keep the body of a refusal, so its status has to speak.
_WHY = {
    403: "not allowed: it needs the verb get on virtualmachineinstances/portforward",
    404: "there is no such VM running",
    409: "the VM is paused or not running yet",
    500: "nobody listens on that port of the VM (yet)",
}


@asynccontextmanager
async def portforward(
    client: KubeClient, *, namespace: str, instance: str, port: int
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Open a stream to `port` of the VirtualMachineInstance `instance`.

    Needs the verb `get` on `virtualmachineinstances/portforward` in `subresources.kubevirt.io`.

    Raises:
        NotFound: no such VMI (a sleeping machine has none).
        ServerError: nobody listens on that port (virt-api answers 500).
        Unreachable: no answer.
    """
    path = (
        f"/apis/subresources.kubevirt.io/v1/namespaces/{namespace}"
        f"/virtualmachineinstances/{instance}/portforward/{port}"
    )
    try:
        socket = await client.session.ws_connect(
            client.connection.server + path,
            protocols=(_PROTOCOL,),
            headers={"Accept": "*/*"},  # virt-api answers 406 to one that asks for JSON
            max_msg_size=0,
            timeout=aiohttp.ClientWSTimeout(ws_close=5.0),
        )
    except aiohttp.WSServerHandshakeError as error:
        message = _WHY.get(error.status, f"the connection was refused with {error.status}")
        raise from_status(
            error.status, {"message": message}, request=f"port-forward {path}"
        ) from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise Unreachable(f"port-forward {path}: {error}") from error
    async with socket:
        yield socket
