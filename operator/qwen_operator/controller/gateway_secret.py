"""The Secret of the gateway's client keys: made when it is absent, never read, never replaced. The leader's work."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn

from qwen_operator.config import Config
from qwen_operator.controller.resync import MANAGED_BY
from qwen_operator.kube import SECRETS, AlreadyExists, ApiError, KubeApi, Manifest

# Asking costs a write request, because only the attempt to create says whether the Secret is there.
MADE_SECONDS = 3600.0
REFUSED_SECONDS = 300.0
RETRY_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class GatewayKeys:
    """Looks after the Secret for ever."""

    api: KubeApi
    config: Config
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def run(self) -> NoReturn:
        while True:
            await self.sleep(await self.ensure())

    async def ensure(self) -> float:
        """Make the Secret unless it is there; returns the seconds until it is worth asking again."""
        gateway = self.config.gateway
        if gateway.auth != "keys":
            return MADE_SECONDS
        where = f"{gateway.namespace}/{gateway.keys_secret}"
        try:
            await self.api.create(SECRETS, self._manifest())
        except AlreadyExists:
            return MADE_SECONDS
        except ApiError as error:
            # Somebody else may have made it, or will: that is no reason to leave the deployments alone.
            wait = REFUSED_SECONDS if 400 <= error.status < 500 else RETRY_SECONDS
            log.warning(
                "cannot make the gateway's client key",
                extra={"object": where, "error": str(error), "retry_seconds": wait},
            )
            return wait
        log.info("create Secret", extra={"object": where, "why": "no client key"})
        return MADE_SECONDS

    def _manifest(self) -> Manifest:
        gateway = self.config.gateway
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": {
                "name": gateway.keys_secret,
                "namespace": gateway.namespace,
                "labels": {MANAGED_BY: "qwen-operator", "app.kubernetes.io/name": "qwen-operator"},
            },
            "stringData": {"default": secrets.token_urlsafe(32)},
        }
