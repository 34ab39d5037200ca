"""The schemes of sources, and the functions with which the rest of the operator uses the source of a spec. Pure."""

from dataclasses import replace

from qwen_operator.actions.blocked import Blocked
from qwen_operator.api.spec import Spec
from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.checkpoints.hubs import HubQuery
from qwen_operator.hardware.inventory import Inventory
from qwen_operator.manifests import inspection_pods
from qwen_operator.manifests.adapters import mounted
from qwen_operator.manifests.inspection_pods import InspectionPlace
from qwen_operator.manifests.names import Manifest, PodIdentity
from qwen_operator.manifests.pod_parts import RuntimeImage
from qwen_operator.planning.types import EngineDefaults, EngineSource
from qwen_operator.sources import adapters, hf, inspection, modelscope, oci, outbound, pvc, s3
from qwen_operator.sources.scheme import Facts, Scheme, SourceContext

SCHEMES = {
    scheme.form.scheme: scheme
    for scheme in (
        pvc.SCHEME,
        hf.SCHEME,
        modelscope.SCHEME,
        s3.SCHEME,
        oci.SCHEME,
    )
}
"""Every scheme by its name in a uri."""


def scheme_of(spec: Spec, defaults: EngineDefaults) -> Scheme:
    """The scheme of a spec's source. Without a source, the model comes from the chart's default hub."""
    return SCHEMES[spec.source.scheme if spec.source else defaults.hub]


def resolve(context: SourceContext) -> Facts | Blocked:
    """The facts of the checkpoint, or the reason why they are missing.

    If no pod reads the model, one reads its adapters.
    """
    known = context.known
    facts = Facts(known) if known else scheme_of(context.spec, context.defaults).resolve(context)
    if isinstance(facts, Blocked) or len(facts.checkpoint.adapters) == len(context.spec.adapters):
        return facts
    read = inspection.resolve(context, EngineSource(model_path=""), {}, facts.checkpoint)
    return replace(facts, checkpoint=read.checkpoint) if isinstance(read, Facts) else read


def engine_source(spec: Spec, checkpoint: Checkpoint, defaults: EngineDefaults) -> EngineSource:
    """Where SGLang finds the model with these facts."""
    source = scheme_of(spec, defaults).engine_source(spec, checkpoint, defaults)
    loaded = adapters.loading(mounted(source, spec), spec, checkpoint, defaults)
    return outbound.reaching(loaded, spec, defaults.outbound)


def hub_query(spec: Spec, defaults: EngineDefaults) -> HubQuery | None:
    """The query for the hub of the source; None if the source is not on a hub."""
    query = scheme_of(spec, defaults).hub_query
    return query(spec) if query else None


def inspected(spec: Spec, defaults: EngineDefaults) -> EngineSource | None:
    """What the inspection pod mounts or runs; None if no pod reads this source."""
    of_scheme = scheme_of(spec, defaults).inspected
    source = of_scheme(spec, defaults) if of_scheme else None
    if source is None:
        return None
    return outbound.reaching(adapters.inspecting(mounted(source, spec), spec, defaults), spec, defaults.outbound)


def inspection_pod(
    identity: PodIdentity, spec: Spec, defaults: EngineDefaults, runtime: RuntimeImage, inventory: Inventory
) -> Manifest | None:
    """The inspection pod for the files of the source; None if no pod reads this source."""
    source = inspected(spec, defaults)
    if source is None:
        return None
    place = InspectionPlace(inspection.products(spec, inventory), near_gpus=not source.inspection)
    return inspection_pods.inspection_pod(identity, spec, source, runtime, place)
