"""A terminal in a machine, from this one: examples/terminal.py MACHINE_ID [TERMINAL_ID]

Needs DEDALUS_BASE_URL and DEDALUS_API_KEY, as `machine-operator local env` prints them, and the package aiohttp.
Without TERMINAL_ID it makes a new terminal; with it you find an older one again as you have left it. Ctrl-] leaves it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import sys
import termios
import tty

import aiohttp

LEAVE = b"\x1d"


async def main(machine_id: str, terminal_id: str | None) -> None:
    """Connect this terminal with one in the machine."""
    headers = {"Authorization": f"Bearer {os.environ['DEDALUS_API_KEY']}"}
    terminals = f"{os.environ['DEDALUS_BASE_URL']}/v1/machines/{machine_id}/terminals"
    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as session:
        if terminal_id is None:
            columns, rows = shutil.get_terminal_size()
            async with session.post(terminals, json={"width": columns, "height": rows}) as answer:
                terminal_id = (await answer.json())["terminal_id"]
        while True:
            async with session.get(f"{terminals}/{terminal_id}") as answer:
                terminal = await answer.json()
            if terminal["status"] != "wake_in_progress":
                break
            await asyncio.sleep(terminal["retry_after_ms"] / 1000)
        if terminal["status"] != "ready":
            sys.exit(f"the terminal is {terminal['status']}: {terminal.get('error_message', '')}")
        async with session.ws_connect(terminal["stream_url"]) as socket:
            await talk(socket)
    print(f"\r\nleft {terminal_id}")


async def talk(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Carry keys there and output back, until one side leaves."""
    loop, keyboard = asyncio.get_running_loop(), sys.stdin.fileno()
    outbox: asyncio.Queue[dict[str, object] | None] = asyncio.Queue()

    def typed() -> None:
        keys = os.read(keyboard, 4096)
        if not keys or LEAVE in keys:
            loop.remove_reader(keyboard)
            outbox.put_nowait(None)
        else:
            outbox.put_nowait({"type": "input", "data": base64.b64encode(keys).decode()})

    def resized() -> None:
        columns, rows = shutil.get_terminal_size()
        outbox.put_nowait({"type": "resize", "width": columns, "height": rows})

    async def deliver() -> None:
        while (message := await outbox.get()) is not None:
            await socket.send_str(json.dumps(message))
        await socket.close()

    loop.add_reader(keyboard, typed)
    loop.add_signal_handler(signal.SIGWINCH, resized)
    delivering = asyncio.create_task(deliver())
    async for message in socket:
        event = json.loads(message.data)
        if event["type"] == "output":
            sys.stdout.buffer.write(base64.b64decode(event["data"]))
            sys.stdout.buffer.flush()
    loop.remove_reader(keyboard)
    delivering.cancel()


if __name__ == "__main__":
    if not sys.stdin.isatty():
        sys.exit("this needs a terminal here too")
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
