"""Asks a hub for the list of a repository's files, and for the commit of a branch or a tag."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from qwen_operator import untrusted
from qwen_operator.api.conditions import Reason
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.fetch import bucket
from qwen_operator.fetch.bucket import Bucket
from qwen_operator.fetch.faults import FetchError
from qwen_operator.fetch.files import Listing, RemoteFile, is_size, listed
from qwen_operator.fetch.wire import Client, Remote
from qwen_runtime.checkpoints.reading import shown

LARGEST_LISTING = 8 << 20
MOST_WITHOUT_SIZE = 1000
"""Each costs a request. The largest known model has 200 files."""
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)


def read_listing(client: Client) -> Listing:
    """The files at `client.remote.commit`, which may also be a branch or a tag. Raises as `Client.get` does."""
    remote = client.remote
    if isinstance(remote, Bucket):
        return bucket.read_listing(client, remote)
    assert isinstance(remote, Remote)
    try:
        raw = client.read_all(listing_url(remote), "the list of files", LARGEST_LISTING)
    finally:
        client.close()
    try:
        answer = untrusted.decode(raw, 8)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise FetchError(Reason.HUB_UNREACHABLE, f"{remote.base} does not answer like a hub: check hub.url")
    return Listing(_commit(answer, remote), tuple(listed(answer, remote.hub)))


def with_sizes(client: Client, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The files with their sizes. Those that the list lacks come from the heads of answers for the files themselves.

    Raises FetchError if there is none either, and as `Client.get` does.
    """
    unknown = [file for file in files if file.size < 0]
    if len(unknown) > MOST_WITHOUT_SIZE:
        message = f"the list of {client.remote.server} does not say how large {len(unknown)} files are"
        raise FetchError(Reason.MODEL_NOT_FOUND, message)
    sizes = {file.path: _size(client, file.path) for file in unknown}
    return tuple(replace(file, size=sizes.get(file.path, file.size)) for file in files)


def _size(client: Client, path: str) -> int:
    try:
        length = client.get(client.remote.file_url(path), path).length
    finally:
        # Nobody reads the body.
        client.close()
    if not is_size(length):
        raise FetchError(Reason.MODEL_NOT_FOUND, f"{client.remote.server} does not say how large {shown(path)} is")
    return length


def listing_url(remote: Remote) -> str:
    """The address of the list."""
    name, revision = quote(remote.repository), quote(remote.commit, safe="")
    if remote.hub is Hub.MODELSCOPE:
        return f"{remote.base}/api/v1/models/{name}/repo/files?Revision={revision}&Recursive=true"
    return f"{remote.base}/api/models/{name}/revision/{revision}?blobs=true"


def _commit(answer: Mapping[str, Any], remote: Remote) -> str:
    """The commit that the list is of. ModelScope names those that last changed each file: the newest of them."""
    if _COMMIT.fullmatch(remote.commit):
        return remote.commit
    commit = answer.get("sha")
    if remote.hub is Hub.MODELSCOPE:
        data = answer.get("Data")
        entries = data.get("Files") if isinstance(data, Mapping) else None
        dated = [entry for entry in entries or () if isinstance(entry, Mapping)]
        newest = max(dated, key=lambda entry: untrusted.whole(entry.get("CommittedDate"), 0, 2**40, 0), default={})
        commit = newest.get("Revision")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise FetchError(Reason.HUB_UNREACHABLE, f"{remote.base} does not name the commit of {remote.repository}")
    return commit
