"""How `pytest -n` spreads the cluster tests over processes that run side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("test_nodes.py", "test_replicas.py")
"""Files that one process runs from beginning to end: the tests share the one exporter, or a node that is lost."""
LONGEST = "test_settled.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests begin first: the others run meanwhile."""
    items.sort(key=lambda item: item.path.name != LONGEST)


class Spread(LoadScopeScheduling):
    """Gives each process one test after the other, but those of a file in TOGETHER at once, and these first."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if Path(file).name in TOGETHER else nodeid


# pytest's option `-p no:xdist` takes the hook away.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Spread:
    return Spread(config, log)
