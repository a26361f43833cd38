"""Safetensors files -> `KimiVL`, every tensor accounted for.

The names in the files are the names of the network's parameters, except for the routed experts: the
files hold three matrices per expert, the network holds them stacked. A tensor that no parameter
claims, a parameter that no tensor fills, and a wrong shape are refused by name. This needs only the
headers of the files, so it comes before any weight is read. No pickle and no remote code is used.

To a CPU, tensors are copied one by one out of the mapped file. To a GPU, each file is read once,
from its start to its end, through pinned memory (`model.staging`).

Letters: E routed experts, D hidden size, F expert width.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.config import KimiVLConfig
from model.json_values import CheckpointError, read_json
from model.memory import require_room
from model.network.kimi_vl import KimiVL
from model.network.moe import MoE, Router, Shards
from model.staging import StagedReader

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# The published files contain these stale buffers. `rope` computes the frequencies itself.
IGNORED = re.compile(r"language_model\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
STACKED = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<stack>gate_up_proj|down_proj)")
READABLE_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
EMBEDDING = "language_model.model.embed_tokens.weight"  # every checkpoint has it


@dataclass(frozen=True)
class StoredTensor:
    """One tensor, as the header of its file describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Destination:
    """The place of one tensor of the files: a parameter, or rows in a stack of experts."""

    parameter: str
    shape: tuple[int, ...]
    expert: int | None = None
    first_row: int = 0


def check_checkpoint(directory: Path) -> KimiVLConfig:
    """Return the configuration if the files fill the network exactly; read only their headers.

    CheckpointError names the file, key or tensor that does not fit.
    """
    config = KimiVLConfig.from_checkpoint(directory)
    _match(stored_tensors(directory), destinations(config), directory)
    return config


def load_model(
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    shards: Shards | None = None,
) -> KimiVL:
    """Build the network of a checkpoint, file by file; `shards` are those of `KimiVL`.

    The peak memory beyond the model is one tensor, or for a GPU two pinned buffers. Experts that
    this process does not hold are not read. `dtype=None` keeps the stored dtype, or that of the
    embedding if they differ.

    Raises:
        CheckpointError: see `check_checkpoint`; or a file cannot be read to its end.
        ValueError: the weights do not fit, see `require_room`.
    """
    config = KimiVLConfig.from_checkpoint(directory)
    stored = stored_tensors(directory)
    where = destinations(config)
    _match(stored, where, directory)
    device = device or torch.device("cpu")
    model = empty_model(config, dtype or READABLE_DTYPES[stored[EMBEDDING].dtype], device, shards)
    with torch.no_grad():
        slots = weight_slots(model, where)
        if device.type == "cuda":
            read_staged(stored, slots, StagedReader())
        else:
            for name, tensor in _read(stored, slots):
                _place(slots[name], tensor)
    return model.eval().requires_grad_(requires_grad=False)


def empty_model(
    config: KimiVLConfig, dtype: torch.dtype, device: torch.device, shards: Shards | None = None
) -> KimiVL:
    """Build the network with uninitialised weights in `dtype`; router biases stay float32.

    Raises ValueError: the weights do not fit, see `require_room`.
    """
    # On the meta device nothing is allocated, so a network that does not fit is refused in time.
    with torch.device("meta"):
        model = KimiVL(config, shards).to(dtype)
    for router in (module for module in model.modules() if isinstance(module, Router)):
        if config.text.topk_method == "noaux_tc":
            bias = router.e_score_correction_bias
            router.e_score_correction_bias = nn.Parameter(bias.float(), requires_grad=False)
    require_room(sum(parameter.nbytes for parameter in model.parameters()), device)
    model.to_empty(device=device)
    for moe in model.experts.values():
        moe.experts.rows_computed.zero_()  # `to_empty` leaves buffers undefined too
    return model


def destinations(config: KimiVLConfig) -> dict[str, Destination]:
    """Map every tensor name of a checkpoint of this configuration to its destination."""
    with torch.device("meta"):
        parameters = KimiVL(config).named_parameters()
    where: dict[str, Destination] = {}
    for name, parameter in parameters:
        stacked = STACKED.fullmatch(name)
        if stacked is None:
            where[name] = Destination(name, tuple(parameter.shape))
        else:
            where |= _of_stack(name, stacked["experts"], stacked["stack"], tuple(parameter.shape))
    return where


def _local_experts(model: KimiVL) -> dict[str, Sequence[int]]:
    """Map the name of each stacked parameter to the experts in it."""
    layers = {name: each for name, each in model.named_modules() if isinstance(each, MoE)}
    return {
        f"{name}.experts.{stack}": moe.local_experts
        for name, moe in layers.items()
        for stack in ("gate_up_proj", "down_proj")
    }


def _of_stack(
    name: str, experts: str, stack: str, shape: tuple[int, ...]
) -> Iterator[tuple[str, Destination]]:
    """List the tensors of the files that make up one stack: [E, 2F, D] or [E, D, F]."""
    num_experts, rows, columns = shape
    matrices = ("gate_proj", "up_proj") if stack == "gate_up_proj" else ("down_proj",)
    height = rows // len(matrices)
    for expert in range(num_experts):
        for place, matrix in enumerate(matrices):
            target = Destination(name, (height, columns), expert, place * height)
            yield f"{experts}.{expert}.{matrix}.weight", target


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Read the headers: name -> tensor; raise CheckpointError if they do not match the index."""
    index_file = directory / INDEX_FILE
    if not index_file.exists():
        if not (directory / SINGLE_FILE).exists():
            raise CheckpointError(f"{directory} has neither {INDEX_FILE} nor {SINGLE_FILE}")
        return _header(directory / SINGLE_FILE)
    weight_map = read_json(index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_file} has no weight_map")
    stored: dict[str, StoredTensor] = {}
    for file_name in sorted(set(map(str, weight_map.values()))):
        if Path(file_name).name != file_name:
            raise CheckpointError(f"{index_file} names {file_name!r}, which is not a plain name")
        for name, tensor in _header(directory / file_name).items():
            if weight_map.get(name) != file_name:
                raise CheckpointError(
                    f"{file_name} holds {name}, which {INDEX_FILE} puts in {weight_map.get(name)}"
                )
            stored[name] = tensor
    missing = sorted(weight_map.keys() - stored.keys())
    if missing:
        raise CheckpointError(f"{INDEX_FILE} names {_some(missing)}, which its files do not hold")
    return stored


def _header(file: Path) -> dict[str, StoredTensor]:
    if not file.exists():
        raise CheckpointError(f"{file} is missing; was the checkpoint downloaded whole?")
    try:
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {
                name: StoredTensor(file, tuple(part.get_shape()), part.get_dtype())
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or not safetensors: {error}") from error


def _match(
    stored: Mapping[str, StoredTensor], where: Mapping[str, Destination], directory: Path
) -> None:
    missing = sorted(where.keys() - stored.keys())
    if missing:
        raise CheckpointError(f"{directory} lacks {_some(missing)}")
    unclaimed = sorted(name for name in stored.keys() - where.keys() if not IGNORED.fullmatch(name))
    if unclaimed:
        raise CheckpointError(f"{directory} holds {_some(unclaimed)}, which no parameter claims")
    for name, target in where.items():
        tensor = stored[name]
        if tensor.shape != target.shape:
            raise CheckpointError(
                f"{tensor.file}: {name} has shape {list(tensor.shape)}, "
                f"the config asks for {list(target.shape)}"
            )
        if tensor.dtype not in READABLE_DTYPES:
            raise CheckpointError(
                f"{tensor.file}: {name} is stored as {tensor.dtype}; "
                f"only {', '.join(READABLE_DTYPES)} are implemented"
            )


def _some(names: Collection[str]) -> str:
    """Name up to three tensors and say how many more there are."""
    shown = ", ".join(list(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"


def _read(
    stored: Mapping[str, StoredTensor], names: Collection[str]
) -> Iterator[tuple[str, Tensor]]:
    """Read the named tensors, file by file, one in memory at a time."""
    for file in sorted({stored[name].file for name in names}):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in names:
                    if stored[name].file == file:
                        yield name, tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error


def read_staged(
    stored: Mapping[str, StoredTensor], slots: Mapping[str, Tensor], reader: StagedReader
) -> None:
    """Fill `slots` on a GPU with the stored tensors of their names, in their order in the files.

    Raises CheckpointError: a file cannot be read to its end.
    """
    for file in sorted({stored[name].file for name in slots}):
        try:
            offsets = _offsets(file)
            with FileIO(file) as opened:
                for name in sorted(slots.keys() & offsets.keys(), key=offsets.__getitem__):
                    dtype = READABLE_DTYPES[stored[name].dtype]
                    reader.read(opened, offsets[name], dtype, slots[name])
        except (EOFError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
    reader.finish()


def _offsets(file: Path) -> dict[str, int]:
    """Return where each tensor begins, in bytes from the start of the file.

    A file begins with the length of its JSON header in 8 bytes, little endian; offsets in it count
    from the end of the header (the format of safetensors). `_header` has had it checked.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}


def weight_slots(model: KimiVL, where: Mapping[str, Destination]) -> dict[str, Tensor]:
    """Return what each tensor of the files fills: a parameter, or rows in a stack of experts.

    Tensors of experts that this process does not hold are left out.
    """
    parameters, local_experts = dict(model.named_parameters()), _local_experts(model)
    slots: dict[str, Tensor] = {}
    for name, target in where.items():
        parameter = parameters[target.parameter]
        if target.expert is None:
            slots[name] = parameter
        elif target.expert in (local := local_experts[target.parameter]):
            rows = slice(target.first_row, target.first_row + target.shape[0])
            slots[name] = parameter[local.index(target.expert), rows]
    return slots


def _place(slot: Tensor, tensor: Tensor) -> None:
    slot.copy_(tensor)
