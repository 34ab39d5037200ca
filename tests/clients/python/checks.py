"""What every client does against the gateway: the same four things, each printed as one line of JSON.

A client's script calls `run` with a function for each check that it can do. A check fails with an exception.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Mapping

URL = os.environ["QWEN_CLIENT_URL"]
"""The address of the gateway, without /v1."""
KEY = os.environ["QWEN_CLIENT_KEY"]
MODEL = os.environ["QWEN_CLIENT_MODEL"]
# A wrong answer must not be repeated, unless a test is about the client's own patience.
LIMITS = {} if os.environ.get("QWEN_CLIENT_DEFAULTS") else {"max_retries": 0, "timeout": 300}
PROMPT = "Is it warm in Berlin?"
# The model of the test bed has random weights. So the schema leaves it only a few answers, all of them short.
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Berlin", "Paris"]}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather of a city", "parameters": SCHEMA},
}


def run(checks: Mapping[str, Callable[[], object]]) -> None:
    """Do all checks, also after one failed."""
    for name, check in checks.items():
        try:
            note = check()
            print(json.dumps({"check": name, "ok": True, "note": str(note or "")[:200]}), flush=True)
        except Exception as error:
            traceback.print_exc()
            failure = f"{type(error).__name__}: {error}"[:400]
            print(json.dumps({"check": name, "ok": False, "note": failure}), flush=True)


def arguments(given: object) -> str:
    """Check the arguments of a tool call, or a structured answer: they must follow SCHEMA."""
    content = json.loads(given) if isinstance(given, str) else given
    assert isinstance(content, dict), f"{given!r} is no object"
    assert content.keys() == {"city", "warm"}, content
    assert content["city"] in ("Berlin", "Paris"), content
    assert isinstance(content["warm"], bool), content
    return json.dumps(content)
