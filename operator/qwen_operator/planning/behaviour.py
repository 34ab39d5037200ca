"""Options that depend on the model and not on memory: parsers of its answers, and longer contexts with YaRN."""

from __future__ import annotations

import json
import math

from qwen_operator.checkpoints.facts import Checkpoint
from qwen_operator.engines.types import Parsers

# Qwen validated static YaRN up to this factor.
YARN_FACTOR = 4
# Qwen3 and QwQ state 40960 positions, of which 32768 were trained; their documentation starts YaRN from those.
_STATED_AND_TRAINED = {("Qwen3", 40960): 32768, ("Qwen2", 40960): 32768}
# Embedding models and rerankers share the class of chat models. Their vocabulary is not padded to 151936 rows.
_EMBEDDING_VOCABULARIES = {("Qwen3", 151665), ("Qwen3", 151669)}
_EMBEDDING_NAMES = ("embedding", "reranker", "gte-qwen")


def parsers(checkpoint: Checkpoint, model: str, names: Parsers) -> tuple[str | None, str | None]:
    """(--tool-call-parser, --reasoning-parser) of a model, each None if the model has no such format.

    `names` are SGLang's names. The family comes from the model class. The model's name only distinguishes variants of
    one class: Coder, Thinking and Instruct variants of Qwen3, and Qwen1.5, which was not trained for tools. A wrong
    guess changes how the parts of an answer are labelled, never whether the engine starts.
    """
    name, family = model.rpartition("/")[2].casefold(), checkpoint.family
    if _embeds(checkpoint, name):
        return None, None
    if family in ("", "Qwen2-VL", "Qwen2.5-VL") or "qwen1.5" in name:
        return None, None
    if family == "Qwen2":
        return names.tools, names.thinking if "qwq" in name else None
    coder = "coder" in name
    calls = names.coder_tools if coder or family == "Qwen3.5" else names.tools
    if coder or "instruct" in name:
        return calls, None
    return calls, names.thinking if "thinking" in name else names.hybrid_thinking


def _embeds(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the model answers with a vector or a score, not with text that a parser could split up."""
    known = (checkpoint.family, checkpoint.vocab) in _EMBEDDING_VOCABULARIES
    return known or any(word in name for word in _EMBEDDING_NAMES)


def longest_context(checkpoint: Checkpoint) -> int:
    """The longest context that an engine can serve: the model's own, or four times as many positions with YaRN."""
    if checkpoint.multimodal:
        return checkpoint.max_positions
    return max(checkpoint.max_positions, YARN_FACTOR * _trained(checkpoint))


def model_overrides(checkpoint: Checkpoint, context: int) -> str | None:
    """The value of --json-model-override-args for a context beyond the model's own, else None.

    Both fields are needed: if `original_max_position_embeddings` is set, SGLang takes the longest context from
    `max_position_embeddings` and ignores the factor.
    """
    if context <= checkpoint.max_positions:
        return None
    trained = _trained(checkpoint)
    scaling = {
        "rope_type": "yarn",
        "factor": math.ceil(context * 10000 / trained) / 10000,
        "original_max_position_embeddings": trained,
    }
    record = {"rope_scaling": scaling, "max_position_embeddings": context}
    return json.dumps(record, separators=(",", ":"))


def _trained(checkpoint: Checkpoint) -> int:
    """Positions that the model was trained for: the start of its rope scaling, or all positions in its config.json."""
    rope = checkpoint.rope
    if rope and rope.original_max_positions:
        return rope.original_max_positions
    return _STATED_AND_TRAINED.get((checkpoint.family, checkpoint.max_positions), checkpoint.max_positions)
