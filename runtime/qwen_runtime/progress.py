"""The page on which a starting engine shows how far it is. It has the form of the page of a download (see `page`).

The engine opens its own port only at the end of its start, so the page has a port of its own.
"""

import json
from collections.abc import Mapping
from typing import Any

from qwen_runtime.engine_log import EngineLog

PORT = 8001


def start_page(log: EngineLog, adapters: Mapping[str, Any] | None = None) -> bytes:
    """The phase, how many of its steps are done, and how many milliseconds it has taken, as JSON in one line.

    The steps of LoadWeights are files of weights, those of CaptureGraphs are batch sizes. `stepsTotal` is 0 if the
    engine has not said how many there are. `adapters`: what `Loader.page` says, if the pod can change its adapters.
    """
    done, total = log.steps
    return json.dumps(
        {
            "version": 1,
            "phase": log.phase.value,
            "stepsDone": done,
            "stepsTotal": total,
            "milliseconds": int(log.phase_seconds() * 1000),
            **({} if adapters is None else {"adapters": adapters}),
        }
    ).encode()
