"""python-socketio's AsyncClient, driven by the same commands as socketio.mjs.

    python socketio_client.py '{"limit_ms":20000,"commands":[…]}'      further commands on standard input

Known: connect, emit, disconnect, expect, absent, sleep, quit; the observations are those of
socketio.mjs, except that `transport` is what the client ended up with after its upgrade.
Bytes are written {"$bin": "BASE64"}.
"""

import asyncio
import base64
import json
import os
import sys
import threading
import time
from urllib.parse import urlencode

import socketio

LIMIT_MS_MAX = 20_000
CONNECT_MS = 5_000
ACK_MS = 3_000
EXPECT_MS = 3_000
ABSENT_MS = 300

started = time.monotonic()
untaken = []
arrived = asyncio.Event()
clients = {}
tasks = set()
failures = 0


def observe(what, ok=True, **details):
    """Prints one observation and hands it to whoever waits for it."""
    line = {"ok": ok, "what": what, **details, "at_ms": round((time.monotonic() - started) * 1000)}
    print(json.dumps(line), flush=True)
    untaken.append(line)
    arrived.set()


def fail(what, **details):
    """Something that must not be: the script will end with code 1."""
    global failures
    failures += 1
    print(json.dumps({"ok": False, "what": what, **details}), flush=True)


def with_bytes(value):
    if isinstance(value, dict):
        if isinstance(value.get("$bin"), str):
            return base64.b64decode(value["$bin"])
        return {key: with_bytes(inner) for key, inner in value.items()}
    return [with_bytes(inner) for inner in value] if isinstance(value, list) else value


def without_bytes(value):
    if isinstance(value, (bytes, bytearray)):
        return {"$bin": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {key: without_bytes(inner) for key, inner in value.items()}
    return [without_bytes(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def contains(whole, part):
    """Does `whole` have everything that `part` has? Lists item by item, from the start."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and contains(whole[key], inner) for key, inner in part.items())
    if isinstance(part, list):
        return isinstance(whole, list) and len(whole) >= len(part) and all(map(contains, whole, part))
    return whole == part


async def connect(name, url, path="/socket.io/", namespace="/", auth=None, query=None, headers=None,
                  transports=("websocket",), reconnection=False, timeout_ms=CONNECT_MS, **_):
    client = socketio.AsyncClient(reconnection=reconnection)
    clients[name] = (client, namespace)
    refusal = []

    async def on_any(event, *args):
        observe("event", name=name, event=event, args=without_bytes(args))

    async def on_error(data=None):
        refusal.append(data)

    async def on_disconnect(reason=None):
        observe("disconnect", name=name, reason=str(reason))

    async def on_connect():
        if connected:  # the first time is told below
            observe("connect", name=name, id=client.get_sid(namespace), recovered=False, transport=client.transport())

    connected = []
    client.on("connect", on_connect, namespace=namespace)
    client.on("*", on_any, namespace=namespace)
    client.on("connect_error", on_error, namespace=namespace)
    client.on("disconnect", on_disconnect, namespace=namespace)
    address = f"{url}?{urlencode(query)}" if query else url
    try:
        await client.connect(address, headers=headers or {}, auth=auth or {}, transports=list(transports),
                             namespaces=[namespace], socketio_path=path.strip("/"), wait_timeout=timeout_ms / 1000)
    except socketio.exceptions.ConnectionError as error:
        said = refusal[-1] if refusal else None
        message = said.get("message", str(error)) if isinstance(said, dict) else str(said or error)
        data = said.get("data") if isinstance(said, dict) else None
        observe("connect_error", ok=False, name=name, message=message, data=data)
        return
    connected.append(True)
    observe("connect", name=name, id=client.get_sid(namespace), recovered=False, transport=client.transport())


async def emit(name, event, args=(), ack=False, timeout_ms=ACK_MS, tag=None, **_):
    client, namespace = clients[name]
    data = tuple(with_bytes(list(args)))
    if not ack:
        await client.emit(event, data, namespace=namespace)
        return

    async def call():
        sent = time.monotonic()
        details = {"name": name, "event": event, "tag": tag}
        answer = asyncio.get_running_loop().create_future()
        await client.emit(event, data, namespace=namespace, callback=lambda *reply: answer.set_result(reply))
        try:
            reply = await asyncio.wait_for(answer, timeout_ms / 1000)
        except TimeoutError:
            observe("ack", ok=False, **details, message="operation has timed out")
            return
        observe("ack", **details, args=without_bytes(reply), ack_ms=round((time.monotonic() - sent) * 1000, 3))

    task = asyncio.create_task(call())
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def disconnect(name, **_):
    await clients[name][0].disconnect()


async def taken(match, timeout_ms):
    """The first untaken observation that contains `match`, waited for; None if none came."""
    end = time.monotonic() + timeout_ms / 1000
    while True:
        arrived.clear()
        for index, line in enumerate(untaken):
            if contains(line, match):
                return untaken.pop(index)
        try:
            await asyncio.wait_for(arrived.wait(), max(0, end - time.monotonic()))
        except TimeoutError:
            return None


async def expect(match, timeout_ms=EXPECT_MS, **_):
    if await taken(match, timeout_ms) is None:
        fail("expected", match=match, timeout_ms=timeout_ms)


async def absent(match, within_ms=ABSENT_MS, **_):
    line = await taken(match, within_ms)
    if line is not None:
        fail("unexpected", match=match, observation=line)


async def sleep(ms, **_):
    await asyncio.sleep(ms / 1000)


ACTIONS = {action.__name__: action for action in (connect, emit, disconnect, expect, absent, sleep)}


async def commands_of(config):
    for command in config.get("commands", []):
        yield command
    lines, loop = asyncio.Queue(), asyncio.get_running_loop()

    def read():
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, None)

    # A thread of its own: standard input may be a pipe, a file or nothing at all.
    threading.Thread(target=read, daemon=True).start()
    while (line := await lines.get()) is not None:
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                yield {"unreadable": line}


async def run(config):
    async for command in commands_of(config):
        word = command.get("do")
        if word == "quit":
            break
        if word not in ACTIONS:
            fail("unknown_command", command=command, known=[*ACTIONS, "quit"])
            continue
        try:
            await ACTIONS[word](**{key: value for key, value in command.items() if key != "do"})
        except Exception as error:  # whatever a command runs into is the test's to see
            fail("command_failed", command=command, message=repr(error))
    for client, _ in clients.values():
        await client.disconnect()


async def main():
    config = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    limit_ms = min(config.get("limit_ms", LIMIT_MS_MAX), LIMIT_MS_MAX)
    try:
        await asyncio.wait_for(run(config), limit_ms / 1000)
    except TimeoutError:
        fail("time_limit", limit_ms=limit_ms)
    return 1 if failures else 0


if __name__ == "__main__":
    code = asyncio.run(main())
    sys.stdout.flush()
    os._exit(code)  # the thread on standard input is still waiting
