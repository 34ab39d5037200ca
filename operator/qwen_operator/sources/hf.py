"""`hf://ORGANISATION/NAME`: a repository on Hugging Face. Pure.

A container downloads a known commit before the engine starts, into the chart's cache or a folder of the pod. SGLang
downloads a branch itself.
"""

from functools import partial

from qwen_operator.api import uris
from qwen_operator.api.engine import EnvVar
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.planning.types import EngineDefaults, EngineSource
from qwen_operator.sources import hub_facts, hub_files
from qwen_operator.sources.scheme import Scheme

_HUB = Hub.HUGGING_FACE


def _engine_source(spec: Spec, checkpoint: Checkpoint, defaults: EngineDefaults) -> EngineSource:
    """All replicas load the commit to which the facts belong, or the revision as written if no commit is known.

    SGLang downloads a single file that is named behind its repository (srt/utils/hf_transformers/common.py:457).
    """
    own = hub_files.downloads_own_way(spec, defaults)
    stored = defaults if own else hub_files.for_pod(_HUB, spec, checkpoint, defaults)
    if (cached := hub_files.cached(_HUB, spec, checkpoint, stored)) is not None:
        return cached
    query, mirror = hub_facts.query_of(_HUB, spec), defaults.mirror(_HUB)
    source = EngineSource(
        model_path=f"{query.repository}/{query.file}" if query.file else query.repository,
        revision=checkpoint.commit or query.revision or None,
        downloads=True,
        env=(EnvVar("HF_ENDPOINT", mirror),) if mirror else (),
    )
    return hub_files.with_token(source, spec, "HF_TOKEN")


SCHEME = Scheme(
    uris.HF,
    partial(hub_files.resolve, _HUB),
    _engine_source,
    hub_query=partial(hub_facts.query_of, _HUB),
    inspected=partial(hub_files.inspected, _HUB),
)
