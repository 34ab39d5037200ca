"""Options that depend on the model and not on memory: longer contexts with YaRN, and media."""

from __future__ import annotations

import json
import math

from qwen_operator.checkpoints.facts import Checkpoint

# Qwen validated static YaRN up to this factor.
YARN_FACTOR = 4
# Qwen3 and QwQ state 40960 positions, of which 32768 were trained; their documentation starts YaRN from those.
_STATED_AND_TRAINED = {("Qwen3", 40960): 32768, ("Qwen2", 40960): 32768}


# The reserved top-level domain .invalid never resolves. Without a list, SGLang fetches any address (utils/common.py,
# _assert_media_url_allowed), also one inside the cluster.
NO_MEDIA_DOMAIN = "none.invalid"


def media_domains(checkpoint: Checkpoint) -> str | None:
    """The hosts from which an engine may fetch what a request names by its address: none. None for text models."""
    return NO_MEDIA_DOMAIN if checkpoint.multimodal else None


def stretched_by(checkpoint: Checkpoint) -> str:
    """How an engine serves more than the model's own positions, in a word for people."""
    return checkpoint.rope.type if checkpoint.rope and _stretched(checkpoint) else "YaRN"


def longest_context(checkpoint: Checkpoint) -> int:
    """The longest context that an engine can serve: the model's own, or four times as many positions with YaRN.

    A checkpoint with another scaling keeps that one, because it was trained with it.
    """
    if checkpoint.multimodal:
        return checkpoint.max_positions
    if stretched := _stretched(checkpoint):
        return stretched
    return max(checkpoint.max_positions, YARN_FACTOR * _trained(checkpoint))


def model_overrides(checkpoint: Checkpoint, context: int) -> str | None:
    """The value of --json-model-override-args for a context beyond the model's own, else None.

    Both fields are needed: if `original_max_position_embeddings` is set, SGLang takes the longest context from
    `max_position_embeddings` and ignores the factor.
    """
    if context <= max(checkpoint.max_positions, _stretched(checkpoint)):
        return None
    trained = _trained(checkpoint)
    scaling = {
        "rope_type": "yarn",
        "factor": math.ceil(context * 10000 / trained) / 10000,
        "original_max_position_embeddings": trained,
    }
    record = {"rope_scaling": scaling, "max_position_embeddings": context}
    return json.dumps(record, separators=(",", ":"))


def _stretched(checkpoint: Checkpoint) -> int:
    """The positions that a linear or dynamic scaling in config.json gives, or 0.

    SGLang multiplies by the factor of these two only (utils/hf_transformers/common.py, `get_context_length`), because
    transformers writes the original positions into all others.
    """
    rope = checkpoint.rope
    if rope is None or rope.original_max_positions or rope.type not in ("linear", "dynamic"):
        return 0
    return int(rope.factor * checkpoint.max_positions)


def _trained(checkpoint: Checkpoint) -> int:
    """Positions that the model was trained for: the start of its rope scaling, or all positions in its config.json."""
    rope = checkpoint.rope
    if rope and rope.original_max_positions:
        return rope.original_max_positions
    return _STATED_AND_TRAINED.get((checkpoint.family, checkpoint.max_positions), checkpoint.max_positions)
