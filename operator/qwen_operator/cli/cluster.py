"""Reads objects of the kubeconfig's cluster for commands that a person runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log lines of the client: the command says itself what went wrong."""
    loggers = [logging.getLogger(name) for name in ("kubernetes", "qwen_operator")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
