"""A model hub on loopback: the answers of Hugging Face and of ModelScope that a reader of public repositories needs.

Hugging Face: `/api/models/ORG/NAME/revision/REV?blobs=true` lists files and names the commit, and
`/ORG/NAME/resolve/COMMIT/FILE` gives a file, usually by a redirect to a content network.
ModelScope: `/api/v1/models/ORG/NAME/repo/files?Revision=REV&Recursive=true` lists files with the commit that last
changed each, and `/api/v1/models/ORG/NAME/repo?Revision=REV&FilePath=FILE` gives one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "f" * 40


@dataclass
class FakeHub:
    """`files` of the one repository Qwen/Test; `sizes` overrides what the listing says; `listing` is all of
    a listing instead; `card` is what a listing says besides; `ranges`: parts of a file can be read; `fault` breaks
    every answer, and one that is only a status has the headers `headers`."""

    files: dict[str, bytes]
    sizes: dict[str, Any] = field(default_factory=dict)
    fault: str = ""
    asked: list[str] = field(default_factory=list)
    address: str = ""
    listing: Any = None
    card: dict[str, Any] = field(default_factory=dict)
    ranges: bool = True
    headers: dict[str, str] = field(default_factory=dict)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Every request comes here."""
        self.asked.append(request.path_qs)
        assert "Authorization" not in request.headers
        if self.fault:
            return await self._broken(request)
        if self.listing is not None:
            return web.json_response(self.listing)
        parts = request.path.strip("/").split("/")
        if parts[0] == "cdn":
            return self._range(request, parts[-1]) if "Range" in request.headers else self._file(parts[-1])
        if parts[0] == "api":
            return self._modelscope(request, parts[2:]) if parts[1] == "v1" else self._list_hugging_face(parts[2:])
        if parts[:2] != ["Qwen", "Test"] or parts[3] != COMMIT:
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        return web.Response(status=307, headers={"Location": f"/cdn/{parts[-1]}"})

    def _list_hugging_face(self, parts: list[str]) -> web.Response:
        if parts[:2] != ["Qwen", "Test"]:
            # What the hub says to anonymous readers of what does not exist, so that names of private ones stay secret.
            return web.Response(status=401, headers={"X-Error-Code": "RepoNotFound"})
        if "/".join(parts[3:]) not in ("main", "refs/pr/1", COMMIT):
            return web.Response(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": name, "size": self._size(name)} for name in self.files]
        return web.json_response({"id": "Qwen/Test", "sha": COMMIT, "siblings": siblings, **self.card})

    def _modelscope(self, request: web.Request, parts: list[str]) -> web.Response:
        if parts[1:3] != ["Qwen", "Test"] or request.query["Revision"] not in ("master", COMMIT):
            return web.json_response({"Code": 10010205001, "Message": "not found", "Success": False}, status=404)
        if parts[-1] == "repo":
            return self._file(request.query["FilePath"])
        files: list[dict[str, Any]] = [
            {"Path": name, "Type": "blob", "Size": self._size(name), "Revision": OLDER, "CommittedDate": 1700000000}
            for name in self.files
        ]
        files[-1] |= {"Revision": COMMIT, "CommittedDate": 1800000000}
        files.append({"Path": "figures.safetensors", "Type": "tree", "Size": 0})
        return web.json_response({"Code": 200, "Data": {"Files": files}, "Success": True})

    def _size(self, name: str) -> Any:
        return self.sizes.get(name, len(self.files[name]))

    def _file(self, name: str) -> web.Response:
        return web.Response(body=self.files[name]) if name in self.files else web.Response(status=404)

    def _range(self, request: web.Request, name: str) -> web.Response:
        """Part of a file, or all of it if the content network does not know ranges."""
        if not self.ranges or name not in self.files:
            return self._file(name)
        asked = request.http_range
        return web.Response(status=206, body=self.files[name][asked])

    async def _broken(self, request: web.Request) -> web.StreamResponse:
        match self.fault:
            case "hangs":
                await asyncio.sleep(30)
            case "loops":
                return web.Response(status=302, headers={"Location": request.path_qs})
            case "trickles" | "floods":
                response = web.StreamResponse()
                await response.prepare(request)
                for _ in range(100_000):
                    await response.write(b" " if self.fault == "trickles" else b" " * 65536)
                    await asyncio.sleep(0.05 if self.fault == "trickles" else 0)
            case "gzip":
                return web.Response(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
            case "text":
                return web.Response(text="<html>captive portal</html>")
        return web.Response(status=int(self.fault), headers=self.headers)


@asynccontextmanager
async def serving(hub: FakeHub) -> AsyncIterator[FakeHub]:
    """The hub at `hub.address` until the block ends."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", hub.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    hub.address = site.name
    try:
        yield hub
    finally:
        await runner.cleanup()


def repository(config: dict[str, Any], shards: dict[str, int], total: int | None = None) -> FakeHub:
    """A repository whose weights are only names with sizes; with `total` there is an index."""
    files = {"README.md": b"#", "config.json": json.dumps(config).encode()} | dict.fromkeys(shards, b"")
    if total is not None:
        weight_map = {f"model.layers.{number}.weight": name for number, name in enumerate(shards)}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        files["model.safetensors.index.json"] = json.dumps(index).encode()
    return FakeHub(files, dict(shards))
