"""Facts of published Qwen checkpoints, so that a well-known model is planned without reading a file.

The data file says for each row how its values were checked. Weight bytes are those of the tensors in GPU memory at
16 bits; a file on disk can be larger (a tied embedding that is stored twice).
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from qwen_operator.checkpoints.facts import CATALOG, Checkpoint


def lookup(model: str) -> Checkpoint | None:
    """The catalog's facts for a repository id such as Qwen/Qwen1.5-7B-Chat, or None."""
    return _rows().get(model)


def names() -> tuple[str, ...]:
    """All repository ids of the catalog, sorted."""
    return tuple(sorted(_rows()))


@cache
def _rows() -> dict[str, Checkpoint]:
    data = json.loads(files(__package__).joinpath("catalog.json").read_text(encoding="utf-8"))
    return {
        repository: Checkpoint.from_json({**row["facts"], "source": CATALOG, "digest": ""})
        for row in data["models"]
        for repository in row["repositories"]
    }
