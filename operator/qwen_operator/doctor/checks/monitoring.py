"""The kinds of the Prometheus operator, and whether a Prometheus selects our objects."""

from collections.abc import Iterator

from qwen_operator import objects
from qwen_operator.doctor.selectors import selects
from qwen_operator.doctor.types import ClusterFacts, Finding, Mark
from qwen_operator.objects import mapping

NAME = "monitoring"


def check(facts: ClusterFacts) -> Iterator[Finding]:
    monitors = facts.pod_monitors
    if monitors.absent:
        yield Finding(
            Mark.OK, NAME, "the cluster has no kinds of the Prometheus operator: leave monitoring.enabled at false"
        )
    elif monitors.problem:
        yield Finding(Mark.UNKNOWN, NAME, f"not checked: {monitors.problem}")
    elif not monitors.items and facts.installation.installed:
        yield Finding(
            Mark.WARNING,
            NAME,
            "the cluster has the kinds of the Prometheus operator, but this release has no PodMonitor: set "
            "monitoring.enabled to true to get metrics and alerts",
        )
    elif not monitors.items:
        yield Finding(
            Mark.OK, NAME, "the cluster has the kinds of the Prometheus operator: monitoring.enabled can be true"
        )
    else:
        yield from _selected(facts)


def _selected(facts: ClusterFacts) -> Iterator[Finding]:
    if facts.prometheuses.problem:
        yield Finding(Mark.UNKNOWN, NAME, f"whether a Prometheus selects our PodMonitors: {facts.prometheuses.problem}")
        return
    for prometheus in facts.prometheuses.items:
        selector = mapping(prometheus, "spec").get("podMonitorSelector")
        if isinstance(selector, dict) and all(
            selects(selector, objects.labels(one)) for one in facts.pod_monitors.items
        ):
            yield Finding(Mark.OK, NAME, f"Prometheus {_name(prometheus)} selects the release's PodMonitors")
            return
    seen = ", ".join(
        f"{_name(one)} selects {mapping(one, 'spec', 'podMonitorSelector').get('matchLabels') or 'by other rules'}"
        for one in facts.prometheuses.items
    )
    yield Finding(
        Mark.WARNING,
        NAME,
        f"no Prometheus selects the release's PodMonitors ({seen or 'there is none'}): set monitoring.labels to the "
        "labels of its podMonitorSelector",
    )


def _name(prometheus: objects.Object) -> str:
    return f"{objects.text(prometheus, 'metadata', 'namespace')}/{objects.text(prometheus, 'metadata', 'name')}"
