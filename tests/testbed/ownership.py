"""Nodes and namespaces that one process made for itself on the test bed.

They carry the process id of their owner. Each owner removes its own; what an owner that was killed could not remove,
the next `up` removes. So a test bed that was used is as good as a fresh one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

OWNER = "qwen-testbed/owner"
"""Label of nodes and namespaces: the process id of whoever made them."""


def owned() -> dict[str, str]:
    """The label that makes an object this process's own."""
    return {OWNER: str(os.getpid())}


def abandoned(items: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the objects whose owner does not run any more and that nobody deletes yet."""
    metadata = [item["metadata"] for item in items]
    owners = {meta["name"]: meta.get("labels", {}).get(OWNER) for meta in metadata if "deletionTimestamp" not in meta}
    return [name for name, owner in owners.items() if owner and not Path(f"/proc/{owner}").exists()]
