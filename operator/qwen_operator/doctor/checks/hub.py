"""Whether the operator reaches the model hub, by what it has experienced. Nothing is started for this check."""

import json
from collections.abc import Iterator

from qwen_operator import objects
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.doctor.types import ClusterFacts, Finding, Mark
from qwen_operator.objects import mapping

NAME = "hub"
_HOSTS = {Hub.HUGGING_FACE: "huggingface.co", Hub.MODELSCOPE: "modelscope.cn"}
# The message of controller/hub_reader.py. A test compares them.
FAILED = "cannot read the hub"


def check(facts: ClusterFacts) -> Iterator[Finding]:
    config = facts.installation.config
    if config is None:
        yield Finding(Mark.UNKNOWN, NAME, "not checked: only a running operator shows whether pods reach the hub")
        return
    if not config.hub_lookup:
        yield Finding(Mark.OK, NAME, "hub.lookup is false: the operator asks no hub")
        return
    where = config.engine.hub_url or _HOSTS[config.engine.hub]
    failure = _last_failure(facts.log.text)
    if failure:
        yield Finding(
            Mark.BAD,
            NAME,
            f"the operator could not read {where} ({failure}): allow its pods to reach it over HTTPS, set hub.url to a "
            "mirror, or set hub.lookup to false",
        )
    elif any(_read_from_hub(one) for one in facts.deployments.items):
        yield Finding(Mark.OK, NAME, f"the operator has read {where}, and its log shows no failure since it started")
    elif facts.log.problem:
        yield Finding(Mark.UNKNOWN, NAME, f"not checked: {facts.log.problem}")
    else:
        yield Finding(
            Mark.UNKNOWN,
            NAME,
            f"not known: no QwenDeployment has facts from {where} yet, and the log shows no failure",
        )


def _last_failure(log: str) -> str:
    """The error of the last failed reading in the operator's log. "" if there is none."""
    for line in reversed(log.splitlines()):
        if FAILED in line:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and record.get("message") == FAILED:
                return str(record.get("error") or record.get("object") or "no details")
    return ""


def _read_from_hub(deployment: objects.Object) -> bool:
    return mapping(deployment, "status", "model").get("factsFrom") == "Hub"
