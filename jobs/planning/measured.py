"""Read what `jobs.bench.engine --device cuda` measured, in place of guesses about a GPU."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from jobs.planning.hardware import GPUS, Hardware

_COMMAND = "python -m jobs.bench.engine --device cuda"

BySize = Annotated[dict[int, PositiveFloat], Field(min_length=1)]


class VisionShares(BaseModel):
    """The share of the limit that MoonViT reaches on the frames of a clip."""

    frames: PositiveFloat


class MeasuredGpu(BaseModel):
    """The measurements of one GPU; the names are the keys of the benchmark."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    card: str
    torch: str
    layers: PositiveInt
    memory_gib: PositiveFloat
    bf16_tflops: PositiveFloat
    copy_gbs: PositiveFloat
    prefill_of_limit: BySize  # by tokens of a step
    decode_of_limit: BySize  # by sequences, as all that follow
    decode_step_ms: BySize
    eager_step_ms: BySize
    vision_of_limit: VisionShares

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the JSON object that ends an output.

        Raises ValueError: there is none, it is not of a GPU, or keys are missing or no numbers.
        """
        values = _last_object(path)
        if values.get("device") != "cuda" or values.get("dry_run") is not False:
            raise ValueError(f"{path} is not a measurement of a GPU; measure one with: {_COMMAND}")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
            )
            raise ValueError(f"{path}: {wrong}; measure all parts with: {_COMMAND}") from None

    @property
    def preset(self) -> str | None:
        """The name in `GPUS` of this card, or None."""
        words = self.card.lower().replace("-", " ").split()
        return next((name for name in GPUS if name.partition("-")[0] in words), None)

    def hardware(self, preset: Hardware, num_sequences: int) -> Hardware:
        """Return `preset` with what was measured; its links stay.

        The shares of the limits are those of the largest measured prefill, of the frames, and of
        the decode whose number of sequences is nearest to `num_sequences`. A layer takes at least
        its part of a decode step with the fewest sequences, without and with CUDA graphs.
        """
        nearest = min(self.decode_of_limit, key=lambda number: abs(number - num_sequences))
        return replace(
            preset,
            tflops=self.bf16_tflops,
            memory_gbs=self.copy_gbs,
            memory_gib=self.memory_gib,
            product_share=self.prefill_of_limit[max(self.prefill_of_limit)],
            vision_share=self.vision_of_limit.frames,
            memory_share=self.decode_of_limit[nearest],
            launch_us=self._layer_us(self.eager_step_ms),
            replay_us=self._layer_us(self.decode_step_ms),
        )

    def _layer_us(self, step_ms: BySize) -> float:
        return round(1e3 * step_ms[min(step_ms)] / self.layers, 1)


def _last_object(path: Path) -> dict[str, Any]:
    """Return the JSON object on the last line that is one; warnings may follow it in a file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            return value
    raise ValueError(f"{path} has no line with a JSON object; write it with: {_COMMAND} | tee FILE")
