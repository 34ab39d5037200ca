"""A stand-in engine, which speaks SGLang's protocol and notes when each request begins and ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from aiohttp import web

MODEL = "m"
TOKENS, TOKEN_SECONDS = 8, 0.02
POISON = "poison"
"""A request of this user ends the engine."""
TOKEN = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'


def serve(address: str, port: int, log: Path) -> None:
    """Run an engine until it is killed."""
    notes = log.open("a", buffering=1)

    def note(what: str, ident: str) -> None:
        notes.write(f"{time.monotonic():.3f} {what} {ident}\n")

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        note("begin", body["user"])
        if body["user"] == POISON:
            os._exit(9)
        head = {"id": "1", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            await asyncio.sleep(TOKEN_SECONDS)
            choice = {"index": 0, "message": {"role": "assistant", "content": body["user"]}, "finish_reason": "stop"}
            note("end", body["user"])
            return web.json_response({**head, "object": "chat.completion", "choices": [choice]})
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for _ in range(TOKENS):
            await answer.write(TOKEN)
            await asyncio.sleep(TOKEN_SECONDS)
        await answer.write(b"data: [DONE]\n\n")
        note("end", body["user"])
        return answer

    async def about(_: web.Request) -> web.Response:
        return web.json_response({"served_model_name": MODEL, "model_path": MODEL, "version": "0.5.23", "data": []})

    app = web.Application(client_max_size=2**30)
    app.router.add_post("/v1/chat/completions", chat)
    for path in ("/health", "/ready", "/server_info", "/model_info", "/v1/models"):
        app.router.add_get(path, about)
    web.run_app(app, host=address, port=port, print=None, access_log=None)


def launch(address: str, port: int, log: Path) -> subprocess.Popen[bytes]:
    """An engine in a process of its own."""
    return subprocess.Popen([sys.executable, "-m", "bench.loss.engine", address, str(port), str(log)])


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
