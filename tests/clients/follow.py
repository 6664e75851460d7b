"""Follows a run with the `websockets` library, cuts its connection every so many events, comes back
with its cursor, and prints each event of the log on a line as it came: follow.py URL SESSION RUN CUT.
The token is in the environment, as REATTACH_TOKEN."""

import asyncio
import json
import os
import sys

import websockets


async def main(url, session, run, cut):
    headers = {"Authorization": f"Bearer {os.environ['REATTACH_TOKEN']}"}
    target = {"sessionId": session, "runId": run}
    while True:
        async with websockets.connect(url, additional_headers=headers) as socket:
            hello = json.loads(await socket.recv())
            assert hello["kind"] == "hello", hello
            await socket.send(json.dumps({"type": "chat.subscribe", "sessions": [target]}))
            seen = 0
            async for text in socket:
                frame = json.loads(text)
                if frame["kind"] == "chat_subscribed":
                    assert frame["recovered"], frame
                if "seq" not in frame or frame["kind"] == "caught_up":
                    continue
                print(text, flush=True)
                target = {"sessionId": session, "runId": run, "lastSeq": frame["seq"]}
                if frame["kind"] == "complete":
                    return
                seen += 1
                if seen == cut:
                    # Not a proper close: as if the network went away.
                    socket.transport.abort()
                    break


asyncio.run(asyncio.wait_for(main(*sys.argv[1:4], int(sys.argv[4])), 60))
