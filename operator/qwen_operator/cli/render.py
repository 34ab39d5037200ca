"""`qwen-operator render`."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from qwen_operator.api.spec import revision_hash
from qwen_operator.cli import inputs
from qwen_operator.cli.files import InputError
from qwen_operator.cli.inputs import Inputs
from qwen_operator.cli.plan import exit_code
from qwen_operator.cli.yaml_text import yaml_text
from qwen_operator.manifests.engine_pods import ReplicaPods, engine_pods, engine_template
from qwen_operator.manifests.mount_paths import mountable
from qwen_operator.manifests.multi_node import connected
from qwen_operator.manifests.names import Owner, PodIdentity
from qwen_operator.manifests.objects import disruption_budget, worker_disruption_budget
from qwen_operator.manifests.revisions import PinnedRevision, replan_of, revision_manifest
from qwen_operator.planning.plan import plan, runnable
from qwen_operator.planning.types import NoFit, Plan
from qwen_operator.replicas.wanted import size_rule
from qwen_operator.sources import registry
from qwen_operator.tenancy.models import place_of

# The API server gives every object its own uid. Here the object does not exist yet.
NO_UID = "00000000-0000-0000-0000-000000000000"


def options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    inputs.options(parser, manifest_only=True)


def main(arguments: argparse.Namespace) -> int:
    """Print the exact objects as YAML. Exit code 3: there is no plan; 2: the input cannot be used."""
    try:
        given = inputs.read(arguments)
    except InputError as error:
        sys.stderr.write(f"qwen-operator render: {error}\n")
        return 2
    planned = plan(given.spec, given.checkpoint, given.inventory, given.settings.engine, given.source)
    result = runnable(planned, given.checkpoint, given.source, given.spec.hardware.max_nodes_per_replica)
    result = mountable(result, given.spec, given.source, _namespace(given))
    if isinstance(result, NoFit):
        sys.stderr.write(f"{result.reason}: {result.message}\n")
        return exit_code(result)
    sys.stdout.write(yaml_text(objects(given, result)))
    return 0


def objects(given: Inputs, result: Plan) -> list[Mapping[str, Any]]:
    """The objects that the operator creates for the manifest, in that order. The owner's uid is all zeros."""
    metadata = given.manifest["metadata"]
    owner = Owner(str(metadata["name"]), _namespace(given), NO_UID)
    revision = revision_hash(given.manifest["spec"], metadata.get("annotations") or {})
    identity, runtime = PodIdentity(owner, revision), given.settings.image
    made = engine_template(identity, given.spec, result, given.source, runtime)
    template = connected(made, result, given.settings.multi_nodes)
    pinned = PinnedRevision(
        revision=revision,
        number=1,
        facts=given.checkpoint,
        plan=result,
        template=template,
        replan=replan_of(given.manifest),
        own_engine=bool(given.spec.engine.image or given.spec.engine.version),
        source=str(place_of(given.manifest["spec"], given.settings.engine.hub)),
    )
    inspection = registry.inspection_pod(identity, given.spec, given.settings.engine, runtime, given.inventory)
    replicas = size_rule(given.spec.replicas, given.spec.scaling, suspend=given.spec.suspend).least
    drain = given.spec.rollout.drain_seconds
    workers = replicas * (result.nodes_per_replica - 1)
    return [
        *([inspection] if inspection else []),
        revision_manifest(owner, pinned),
        *([disruption_budget(owner, replicas)] if replicas else []),
        *([worker_disruption_budget(owner, workers)] if workers else []),
        *(
            pod
            for index in range(replicas)
            for pod in engine_pods(ReplicaPods(identity, index, result.nodes_per_replica), template, drain)
        ),
    ]


def _namespace(given: Inputs) -> str:
    return str(given.manifest["metadata"].get("namespace") or "default")
