"""Reads objects of the kubeconfig's cluster for commands that a person runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from qwen_operator.kube import ApiError, Resource, client


def listed(resource: Resource, namespace: str | None = None) -> list[Mapping[str, Any]]:
    """All objects of a kind, in one namespace or in all. Raises ConnectionError."""

    async def read() -> list[Mapping[str, Any]]:
        api = await client.connect()
        try:
            return list((await api.list(resource, namespace))[0])
        finally:
            await api.aclose()

    # The client logs the same error as well.
    logging.getLogger("kubernetes").setLevel(logging.CRITICAL)
    try:
        return asyncio.run(read())
    except ApiError as error:
        raise ConnectionError(str(error)) from error
