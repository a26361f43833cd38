"""Count what a step of the engine asks of a GPU, on a machine that has none.

    python -m jobs.bench.gpu_steps               # the published shape, 27 layers
    python -m jobs.bench.gpu_steps --layers 4

The engine steps as it would on a GPU, on fake CUDA tensors, which have shapes but no numbers. So
the counts are exact, and say nothing about time. Counted is a step without CUDA graphs. With them
a step that only decodes is one launch, and the operations around it.

  ops          operations of a decode step that start work on the device, views left out. A kernel
               of this project counts as one.
  host_waits   how often the host waits for the device in it
  prefill_ops  operations of a step that computes four prompts of 2,048 tokens

The last line of the output is one JSON object, with `ops` and `host_waits` by number of sequences.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.bench.command import bench_parser, print_json, print_rows
from jobs.bench.measure.fake_gpu import fake_gpu
from jobs.bench.measure.shapes import engine_with, text_prompt
from jobs.cli.options import Parser, positive
from jobs.planning.shapes import moonlight
from model.config import KimiVLConfig
from model.engine import batch_builder, image_cache, sampled_step, sampling
from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.network.kernels.install import install
from model.network.kimi_vl import KimiVL

NUM_SEQUENCES = (1, 32, 256)
PREFILL = (2048,) * 4
_CONTEXT_LEN = 40  # of decodes; no count depends on it
# They give another view of the same memory, or reserve memory, and start nothing on the device.
_FREE = frozenset(
    "device view _unsafe_view transpose slice select split split_with_sizes expand unsqueeze "
    "permute t as_strided detach alias unbind squeeze unflatten _reshape_alias lift_fresh chunk "
    "view_as reshape diagonal view_as_complex view_as_real unfold empty new_empty empty_like "
    "unsafe_chunk new_empty_strided empty_strided".split()
)


class Counts(TorchDispatchMode):
    """Counts operations and waits in its `with`."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.host_waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation, and do it; one that is made of others is counted as those."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name != "device":
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if name not in _FREE:
            self.by_name[name] += 1
        devices = {each.device.type for each in (*args, result) if isinstance(each, Tensor)}
        # From ordinary memory the device reads at once, so the host waits. What asks for a number
        # of the device fails here, because there is none.
        if len(devices) == 2 and name in ("_to_copy", "copy_"):
            self.host_waits += 1
        return result

    @property
    def ops(self) -> int:
        """How many operations started work on the device."""
        return self.by_name.total()


class FakeTransfer:
    """Takes the place of `model.engine.transfer`: copies that fake tensors cannot do."""

    def __init__(self) -> None:
        self.counts = Counts()

    def to_device(self, numbers: NDArray[Any], device: torch.device) -> Tensor:
        """Do as `transfer.to_device`: one copy, and no wait."""
        self.counts.by_name["copy to device"] += 1
        dtype = torch.from_numpy(np.empty(0, numbers.dtype)).dtype
        return torch.empty(numbers.shape, dtype=dtype, device=device)

    def download(self, tensor: Tensor) -> "_Arrived":
        """Do as `transfer.Download`: one copy, and a wait for it."""
        self.counts.by_name["copy to host"] += 1
        return _Arrived(self, tensor.numel())

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the engine use this in place of real copies."""
        with ExitStack() as stack:
            for module in (batch_builder, sampling, sampled_step, image_cache):
                if hasattr(module, "to_device"):
                    stack.enter_context(patch.object(module, "to_device", self.to_device))
            stack.enter_context(patch.object(sampled_step, "Download", self.download))
            yield


class _Arrived:
    def __init__(self, transfer: FakeTransfer, num_numbers: int) -> None:
        self._transfer = transfer
        self._num_numbers = num_numbers

    def wait(self) -> NDArray[np.float64]:
        """Return numbers that are legal as tokens and as log-probabilities."""
        self._transfer.counts.host_waits += 1
        return np.ones(self._num_numbers)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print a table and a JSON object, and return the exit code."""
    options = _parser().parse_args(arguments)
    found = count(moonlight(options.layers))
    print_rows(
        {"sequences": number, "ops": found["ops"][number], "waits": found["host_waits"][number]}
        for number in found["ops"]
    )
    print(f"prefill of {sum(PREFILL):,} tokens: {found['prefill_ops']} operations")
    print_json({"layers": options.layers, **found})
    return 0


def count(config: KimiVLConfig) -> dict[str, Any]:
    """Count the steps of the network of `config`; see the top of this file."""
    with torch.no_grad(), fake_gpu():
        model = fake_model(config)
        install(model)
        decodes = {str(number): decode_counts(model, number) for number in NUM_SEQUENCES}
        prefill = prefill_counts(model)
    return {
        "ops": {number: counts.ops for number, counts in decodes.items()},
        "host_waits": {number: counts.host_waits for number, counts in decodes.items()},
        "prefill_ops": prefill.ops,
    }


def decode_counts(model: KimiVL, num_sequences: int) -> Counts:
    """Count a step that decodes `num_sequences`, as one of many."""
    return _counted_step(model, (_CONTEXT_LEN,) * num_sequences, is_decode=True)


def prefill_counts(model: KimiVL) -> Counts:
    """Count a step that computes whole prompts."""
    return _counted_step(model, PREFILL, is_decode=False)


def _counted_step(model: KimiVL, prompt_lens: Sequence[int], *, is_decode: bool) -> Counts:
    transfer = FakeTransfer()
    with transfer.installed():
        engine = _engine(model, len(prompt_lens))
        for number, length in enumerate(prompt_lens):
            prompt = text_prompt(np.full(length, 5 + number, np.int32))
            engine.add(str(number), prompt, SamplingParams(max_tokens=64, loop_guard=0))
        if is_decode:
            while engine.scheduler.num_waiting:
                engine.step()
            for _ in range(3):  # until a step follows another one that only decodes
                engine.step()
        transfer.counts = Counts()
        with transfer.counts:
            engine.step()
    return transfer.counts


def _engine(model: KimiVL, num_sequences: int) -> Engine:
    config = EngineConfig(
        device="cuda",
        max_batch_size=max(4, num_sequences),
        max_model_len=4096,
        cache_gib=4.0,
        cuda_graphs=False,
    )
    return engine_with(model, config)


def fake_model(config: KimiVLConfig, dtype: torch.dtype = torch.bfloat16) -> KimiVL:
    """Give a network fake weights on a GPU; torch cannot move or initialise fake ones."""
    with torch.device("meta"):
        model = KimiVL(config)
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            there = torch.empty(weight.shape, dtype=dtype, device="cuda")
            module.register_parameter(name, nn.Parameter(there, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            there = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
            module.register_buffer(name, there, persistent=False)
    return model


def _parser() -> Parser:
    parser = bench_parser("jobs.bench.gpu_steps", __doc__)
    parser.add_argument("--layers", type=positive, default=27, help="layers of the network")
    return parser


if __name__ == "__main__":
    sys.exit(main())
