"""The Secret of the gateway's client keys. The leader creates it if it is absent, and never reads or replaces it.

With `gateway.keys.create: false` somebody else creates it.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn

from qwen_operator.config.types import Config
from qwen_operator.controller.resync import MANAGED_BY
from qwen_operator.kube import SECRETS, AlreadyExists, ApiError, KubeApi, Manifest

# Each check is a write request, because only an attempt to create the Secret shows whether it exists.
EXISTS_SECONDS = 3600.0
REJECTED_SECONDS = 300.0
RETRY_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class GatewayKeys:
    """Keeps the Secret in existence."""

    api: KubeApi
    config: Config
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def run(self) -> NoReturn:
        while True:
            await self.sleep(await self.ensure())

    async def ensure(self) -> float:
        """Create the Secret unless it exists. Returns the seconds until the next check."""
        gateway = self.config.gateway
        if gateway.auth != "keys" or not gateway.create_keys:
            return EXISTS_SECONDS
        secret = f"{gateway.namespace}/{gateway.keys_secret}"
        try:
            await self.api.create(SECRETS, self._manifest())
        except AlreadyExists:
            return EXISTS_SECONDS
        except ApiError as error:
            # A person may create the Secret instead. The operator must go on with the deployments meanwhile.
            wait = REJECTED_SECONDS if 400 <= error.status < 500 else RETRY_SECONDS
            log.warning(
                "cannot create the gateway's client key",
                extra={"object": secret, "error": str(error), "retry_seconds": wait},
            )
            return wait
        log.info("create Secret", extra={"object": secret, "why": "no client key"})
        return EXISTS_SECONDS

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
