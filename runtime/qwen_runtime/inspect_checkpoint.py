"""Reads the facts of a checkpoint folder, before a GPU is used for it.

Nothing in the folder is trusted. Sizes are checked before contents are read, and tensor data is never read. Every file
that an engine will open is opened here first, with the same uid, because engines report an unreadable file as missing.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from qwen_runtime import weights
from qwen_runtime.checkpoints.chat import LARGEST_CHAT_FILE, ChatFormat, chat_files, read_chat
from qwen_runtime.checkpoints.config import CONFIG_FILE, LARGEST_CONFIG, TensorHints, read
from qwen_runtime.checkpoints.gguf import is_gguf
from qwen_runtime.checkpoints.methods import check_beside
from qwen_runtime.checkpoints.model import ModelConfig
from qwen_runtime.checkpoints.modules import Held
from qwen_runtime.checkpoints.reading import InvalidFactsError, shown
from qwen_runtime.faults import Fault, parsed
from qwen_runtime.inspect_adapter import inspect_adapters
from qwen_runtime.inspect_gguf import inspect_gguf
from qwen_runtime.json_parts import Parts, TooLargeError
from qwen_runtime.reasons import ReportReason
from qwen_runtime.safetensors import Room, Shard, opened, owner_and_mode, pieces, read_shard

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
"""The config of an adapter, as PEFT, LLaMA-Factory and Axolotl write it."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The tensors of an adapter. SGLang skips them if they lie beside those of a merged model."""
LARGEST_INDEX = 100_000_000
MOST_FILES = 10_000
"""Weight files of a checkpoint. The largest known model has 200."""
_MOST_NAMES = 100_000
_LARGEST_ENTRY = 1 << 20
# What trainers leave beside an adapter.
_NO_WEIGHTS = ("training_args.bin",)
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def examine(
    folder: Path | None, adapters: Sequence[tuple[str, Path]] = (), *, to_join: bool = False
) -> tuple[dict[str, Any], bool]:
    """The report on a folder or a GGUF file, and whether the facts are complete. Nothing in it can make it raise.

    `adapters` are names and folders of LoRA adapters. Without a folder of a model, the report is on these alone.
    `to_join`: the parts of a split GGUF file become one file before an engine opens it.
    """
    try:
        records = {"adapters": inspect_adapters(adapters)} if adapters else {}
        if folder is None:
            return {"version": 2, **records}, True
        model = inspect_gguf(folder, to_join=to_join) if is_gguf(folder.name) else inspect(folder)
        return model | records, True
    except Fault as fault:
        return fault.report(), False


def inspect(folder: Path) -> dict[str, Any]:
    """The success report. Raises Fault with the first problem."""
    names = _listing(folder)
    if _is_adapter(names):
        message = (
            f"{folder} holds a LoRA adapter ({ADAPTER}) and no model: merge it into its base model, for example with "
            "merge_and_unload of PEFT, and name the folder of the result."
        )
        raise Fault(ReportReason.MODEL_NOT_FOUND, message, ADAPTER)
    if not any(name.endswith(".safetensors") and name != ADAPTER_WEIGHTS for name in names) and INDEX not in names:
        _refuse_other_weights(folder, names)
    raw = _small_file(folder, CONFIG_FILE, LARGEST_CONFIG)
    content = parsed(raw, CONFIG_FILE, LARGEST_CONFIG)
    shard_names = _shard_names(folder, names)
    room = Room()
    shards = [read_shard(folder / name, name, room) for name in shard_names]
    weight_bytes = sum(shard.data_bytes for shard in shards)
    if weight_bytes == 0:
        raise Fault(ReportReason.MODEL_NOT_FOUND, f"The *.safetensors files of {folder} hold no tensors.")
    tensors = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    hints = _hints(shards)
    model = _model(content, names, hints, weights.linear_layers(tensors))
    if packed := weights.packed(tensors) if model.quantization is None else "":
        message = (
            f"{shown(packed)} belongs to quantized weights, but {CONFIG_FILE} has no quantization_config, so SGLang "
            f"would take them for plain ones: take {CONFIG_FILE} from where the weights come from."
        )
        raise Fault(ReportReason.INVALID_CONFIG, message, CONFIG_FILE)
    if stacked := weights.unread(tensors, model.architecture):
        message = (
            f"{shown(stacked)} has all experts of a layer in one tensor, as a merge of Axolotl writes them. SGLang "
            f"reads only single experts of a {model.architecture}: merge again with merge_method: legacy."
        )
        raise Fault(ReportReason.INVALID_CONFIG, message)
    _check_tokenizer(folder, names)
    chat = _chat(folder, names)
    narrowed = model.quantization is None and "float32" in (model.dtype, hints.dtype)
    return {
        "version": 2,
        **model.to_report(),
        **weights.parts(tensors, model.tied, narrowed=narrowed),
        "weightBytes": weight_bytes,
        "tensors": sum(len(shard.tensors) for shard in shards),
        "files": len(shards),
        "tokenizer": True,
        "chat": chat.to_record(),
        "configSha256": hashlib.sha256(raw).hexdigest(),
    }


def _is_adapter(names: frozenset[str]) -> bool:
    """Whether the folder has weights of an adapter and none of a model. Axolotl writes a config.json beside them."""
    if ADAPTER not in names or INDEX in names:
        return False
    of_model = (
        name for name in names if name.endswith((".safetensors", ".bin")) and not name.startswith("adapter_model.")
    )
    return CONFIG_FILE not in names or all(name in _NO_WEIGHTS for name in of_model)


def _model(content: Mapping[str, Any], names: frozenset[str], hints: TensorHints, held: Held) -> ModelConfig:
    try:
        check_beside(content, names)
        return read(content, hints, held)
    except InvalidFactsError as error:
        raise Fault(ReportReason.INVALID_CONFIG, f"{CONFIG_FILE}: {error}.", CONFIG_FILE) from None


def _chat(folder: Path, names: frozenset[str]) -> ChatFormat:
    files = {name: _small_file(folder, name, LARGEST_CHAT_FILE) for name in chat_files(names)}
    try:
        return read_chat(files, names)
    except InvalidFactsError as error:
        raise Fault(ReportReason.INVALID_CONFIG, f"{error}.") from None


def _listing(folder: Path) -> frozenset[str]:
    try:
        names = frozenset(entry.name for entry in islice(folder.iterdir(), _MOST_NAMES + 1))
    except NotADirectoryError:
        raise Fault(ReportReason.MODEL_NOT_FOUND, f"{folder} is a file; the model must be a folder.") from None
    except PermissionError:
        message = f"{folder} cannot be listed by uid {os.geteuid()}: {owner_and_mode(folder)}; run chmod a+rx on it."
        raise Fault(ReportReason.UNREADABLE_WEIGHTS, message) from None
    except FileNotFoundError:
        message = f"{folder} does not exist; the path must name the folder that holds {CONFIG_FILE}."
        raise Fault(ReportReason.MODEL_NOT_FOUND, message) from None
    except (OSError, ValueError) as error:
        detail = error.strerror if isinstance(error, OSError) else error
        raise Fault(ReportReason.UNREADABLE_WEIGHTS, f"{shown(str(folder))} cannot be listed: {detail}.") from None
    if not names:
        message = f"{folder} is empty; the path must name the folder that holds {CONFIG_FILE}."
        raise Fault(ReportReason.MODEL_NOT_FOUND, message)
    if len(names) > _MOST_NAMES:
        message = f"{folder} has more than {_MOST_NAMES} files; the path must name the folder of one checkpoint."
        raise Fault(ReportReason.INVALID_CONFIG, message)
    return names


def _refuse_other_weights(folder: Path, names: Iterable[str]) -> None:
    """Raise the fault for a folder without safetensors, if other files explain it better than a missing config."""
    if files := sorted(name for name in names if is_gguf(name)):
        message = f"{folder} holds GGUF files: set spec.source.file to one of them, for example {shown(files[0])}."
        raise Fault(ReportReason.MODEL_NOT_FOUND, message)
    if CONFIG_FILE in names:
        pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
        instead = f", only {shown(pickles[0])}; convert it to safetensors" if pickles else ""
        raise Fault(ReportReason.MODEL_NOT_FOUND, f"{folder} has no *.safetensors file{instead}.")


def _small_file(folder: Path, name: str, limit: int) -> bytes:
    return b"".join(_pieces_of(folder, name, limit))


def _pieces_of(folder: Path, name: str, limit: int) -> Iterator[bytes]:
    """The content of a file of fewer than `limit` bytes. Raises Fault with InvalidConfig for a larger one."""
    with opened(folder / name, name) as descriptor:
        size = os.fstat(descriptor).st_size
        if size < limit:
            count = 0
            for piece in pieces(descriptor, limit, name):
                count += len(piece)
                yield piece
            if count < limit:
                return
    raise Fault(ReportReason.INVALID_CONFIG, f"{name} has {size} bytes; it must have fewer than {limit}.", name)


def _shard_names(folder: Path, names: frozenset[str]) -> list[str]:
    """The files in the index if there is one, as engines do, else every safetensors file."""
    present = {name for name in names if name.endswith(".safetensors") and name != ADAPTER_WEIGHTS}
    shards = _indexed(folder) if INDEX in names else present
    if len(shards) > MOST_FILES:
        message = f"{folder} has more than {MOST_FILES} files of weights; the path must name one checkpoint."
        raise Fault(ReportReason.INVALID_CONFIG, message)
    return sorted(shards)


def _indexed(folder: Path) -> set[str]:
    """The files that the index names. It reads the index entry by entry."""
    parts = Parts("weight_map", _LARGEST_ENTRY, _LARGEST_ENTRY)
    files: set[str] = set()
    try:
        for piece in _pieces_of(folder, INDEX, LARGEST_INDEX):
            entries = b",".join(parts.feed(piece))
            if parts.of_object and len(files) <= MOST_FILES:
                files |= _files(parsed(b"{%b}" % entries, INDEX, LARGEST_INDEX))
    except TooLargeError as error:
        raise Fault(ReportReason.INVALID_CONFIG, f"{INDEX} is too large: {error}.", INDEX) from None
    if parts.dropped:
        message = f"{INDEX} is too large: an entry has more than {_LARGEST_ENTRY} bytes."
        raise Fault(ReportReason.INVALID_CONFIG, message, INDEX)
    # A short index may be in the rest as a whole.
    weight_map = parsed(parts.end(), INDEX, LARGEST_INDEX).get("weight_map")
    if isinstance(weight_map, dict):
        files |= _files(weight_map)
    if not files:
        message = f"weight_map in {INDEX} is {shown(weight_map)}; it must be an object of tensor names and files."
        raise Fault(ReportReason.INVALID_CONFIG, message, INDEX)
    return files


def _files(weight_map: Mapping[str, Any]) -> set[str]:
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or "/" in file or "\0" in file:
            label = f"weight_map[{shown(tensor)}]"
            message = f"{label} in {INDEX} is {shown(file)}; it must name a *.safetensors file of the same folder."
            raise Fault(ReportReason.INVALID_CONFIG, message, INDEX)
    return set(weight_map.values())


def _hints(shards: Iterable[Shard]) -> TensorHints:
    by_dtype = dict.fromkeys(_DTYPES, 0)
    has_lm_head = False
    for shard in shards:
        has_lm_head = has_lm_head or any(name.endswith("lm_head.weight") for name in shard.tensors)
        for tensor in shard.tensors.values():
            if tensor.dtype in by_dtype:
                by_dtype[tensor.dtype] += tensor.size
    largest = max(by_dtype, key=lambda dtype: by_dtype[dtype])
    return TensorHints(_DTYPES[largest] if by_dtype[largest] else None, has_lm_head)


def _check_tokenizer(folder: Path, names: frozenset[str]) -> None:
    for files in TOKENIZERS:
        if all(name in names for name in files):
            for name in files:
                _check_not_empty(folder, name)
            return
    wanted = "tokenizer.json, tokenizer.model, or vocab.json with merges.txt"
    raise Fault(ReportReason.TOKENIZER_MISSING, f"{folder} has no tokenizer; it must hold {wanted}.")


def _check_not_empty(folder: Path, name: str) -> None:
    with opened(folder / name, name) as descriptor:
        if os.fstat(descriptor).st_size == 0:
            raise Fault(ReportReason.TOKENIZER_MISSING, f"{name} is empty; copy or download this file again.", name)
