"""`hf://ORGANISATION/NAME`: a repository on Hugging Face, which every engine downloads when it starts. Pure."""

from functools import partial

from qwen_operator.api import uris
from qwen_operator.api.engine import EnvVar
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.planning.types import EngineDefaults, EngineSource
from qwen_operator.sources import hub_facts
from qwen_operator.sources.scheme import Scheme

_HUB = Hub.HUGGING_FACE


def _engine_source(spec: Spec, checkpoint: Checkpoint, defaults: EngineDefaults) -> EngineSource:
    """All replicas load the commit to which the facts belong, or the revision as written if no commit is known.

    SGLang downloads a single file that is named behind its repository (srt/utils/hf_transformers/common.py:457).
    """
    query, mirror = hub_facts.query_of(_HUB, spec), defaults.mirror(_HUB)
    return EngineSource(
        model_path=f"{query.repository}/{query.file}" if query.file else query.repository,
        revision=checkpoint.commit or query.revision or None,
        downloads=True,
        env=(EnvVar("HF_ENDPOINT", mirror),) if mirror else (),
    )


SCHEME = Scheme(uris.HF, partial(hub_facts.resolve, _HUB), _engine_source, hub_query=partial(hub_facts.query_of, _HUB))
