"""`modelscope://ORGANISATION/NAME`: a repository on ModelScope. Pure.

ModelScope's client, with which SGLang downloads, looks a revision up among branches and tags, and accepts no commit. So
a container downloads a known commit before the engine starts, into the chart's cache or a folder of the pod.
"""

from functools import partial
from urllib.parse import urlsplit

from qwen_operator.api import uris
from qwen_operator.api.engine import EnvVar
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import Hub
from qwen_operator.planning.types import EngineDefaults, EngineSource
from qwen_operator.sources import hub_facts, hub_files
from qwen_operator.sources.scheme import Scheme

_HUB = Hub.MODELSCOPE


def _engine_source(spec: Spec, checkpoint: Checkpoint, defaults: EngineDefaults) -> EngineSource:
    """All replicas load the commit to which the facts belong, or the branch or tag as written if no commit is known."""
    query = hub_facts.query_of(_HUB, spec)
    stored = hub_files.for_pod(_HUB, spec, checkpoint, defaults)
    if (cached := hub_files.cached(_HUB, spec, checkpoint, stored)) is not None:
        return cached
    mirror = defaults.mirror(_HUB)
    domain = (EnvVar("MODELSCOPE_DOMAIN", urlsplit(mirror).netloc),) if mirror else ()
    return EngineSource(
        model_path=query.repository,
        revision=query.revision or None,
        downloads=True,
        env=(EnvVar("SGLANG_USE_MODELSCOPE", "true"), *domain),
    )


SCHEME = Scheme(
    uris.MODELSCOPE,
    partial(hub_files.resolve, _HUB),
    _engine_source,
    hub_query=partial(hub_facts.query_of, _HUB),
    inspected=partial(hub_files.inspected, _HUB),
)
