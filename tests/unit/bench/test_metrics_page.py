"""The measurement of the metrics page: it measures the page that the operator serves."""

from prometheus_client import CollectorRegistry

from bench.metrics_page import filled, measure
from qwen_operator.endpoints import MetricsPage
from qwen_operator.metrics.deployments import DeploymentMetrics, LoadSource


async def test_the_page_has_all_deployments_and_one_rendering_serves_all_scrapes() -> None:
    metrics = DeploymentMetrics(filled(30, 2), LoadSource(dict, dict), lambda: True)
    page = (await MetricsPage(CollectorRegistry(), metrics.slices).body()).decode()
    assert page.count('\nqwen_deployment_replicas{deployment="chat-29",namespace="team-29",state="granted"} 2.0') == 1
    result = await measure(300, 1)
    assert result.cpu_in_slices < result.cpu_at_once / 3
    assert result.pause_in_slices < result.pause_at_once
