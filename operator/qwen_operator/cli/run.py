"""`qwen-operator run`."""

import argparse
import asyncio
import logging
import os
from pathlib import Path

from qwen_operator.config.load import load
from qwen_operator.config.section import ConfigError
from qwen_operator.kube.lease import NotLeading
from qwen_operator.main import run

log = logging.getLogger(__name__)


def main(_arguments: argparse.Namespace) -> int:
    """Run the operator until it gets a signal to stop, or loses the Lease."""
    path = Path(os.environ.get("QWEN_CONFIG", "/etc/qwen-operator/config.yaml"))
    try:
        asyncio.run(run(load(os.environ, path.read_text(encoding="utf-8"))))
    except ConfigError as error:
        log.error("%s: %s", path, error)  # noqa: TRY400 - a wrong setting needs no stack trace
        return 1
    except NotLeading as error:
        log.error("%s", error)  # noqa: TRY400 - this is normal; the next process stands by
        return 1
    except OSError as error:
        log.error("%s", error)  # noqa: TRY400 - no file, no cluster or port in use: the sentence is enough
        return 1
    return 0
