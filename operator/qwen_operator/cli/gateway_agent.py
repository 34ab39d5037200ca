"""`qwen-operator gateway-agent`."""

import argparse
import asyncio
import logging
import os
import signal

from qwen_operator.gateway.agent import run
from qwen_operator.gateway.settings import AgentSettings, SettingsError

log = logging.getLogger(__name__)


def main(_arguments: argparse.Namespace) -> int:
    """Run the agent until SIGTERM. Process 1 of a container must handle SIGTERM, or it has no effect."""
    try:
        asyncio.run(_until_stopped(AgentSettings.from_env(os.environ)))
    except (SettingsError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400 - the sentence about a setting or the cluster is enough
        return 1
    return 0


async def _until_stopped(settings: AgentSettings) -> None:
    task = asyncio.create_task(run(settings))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.info("stopped")
