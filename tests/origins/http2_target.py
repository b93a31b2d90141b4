"""An HTTP/2 target on hypercorn: http2_target.py CERTIFICATE KEY. Its port is the first line; it ends when its standard
input has."""

import asyncio
import os
import socket
import sys
import threading

from hypercorn.asyncio import serve
from hypercorn.config import Config


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def watch():
    sys.stdin.read()
    os._exit(0)


listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=watch, daemon=True).start()
config = Config()
config.bind = [f"fd://{listener.fileno()}"]
config.certfile, config.keyfile = sys.argv[1:3]
config.loglevel = "ERROR"
print(listener.getsockname()[1], flush=True)
asyncio.run(serve(app, config, shutdown_trigger=asyncio.Event().wait))
