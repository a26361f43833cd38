"""Predict the memory and speed of a layout of groups and ranks.

A step takes the sum of its operations: each is bound by arithmetic or by memory, and exchanges by
latency or by bytes. The docstring of `jobs.plan` lists all assumptions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.planning.hardware import Hardware
from jobs.planning.network import BF16_BYTES, Network
from model.config import BLOCK_SIZE

GIB = 1 << 30
DAY_S = 86_400
_EXCHANGES = 3  # per layer: counts, rows to the experts, rows back
_NEAR = 0.97  # share of the best rate from which fewer ranks are preferred


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The work of one row, and how a rank processes rows."""

    visual_tokens: int
    text_tokens: int
    generated_tokens: int
    frame_tokens: int  # of each frame
    step_tokens: int  # of a step with prompts
    most_sequences: int  # that a rank decodes at the same time
    level: float  # mean by greatest tokens of a rank per step; 1 is best
    skew: float  # expert rows of the busiest rank by those of the mean rank; 1 is best
    num_copies: int  # extra copies of experts on each rank

    @property
    def prompt_tokens(self) -> int:
        """Tokens that are computed before the first generated token."""
        return self.visual_tokens + self.text_tokens


@dataclass(frozen=True)
class StepTime:
    """The seconds of one step of a rank."""

    compute_s: float
    exchange_s: float

    @property
    def seconds(self) -> float:
        """Seconds of the step: computing and exchanges do not overlap."""
        return self.compute_s + self.exchange_s


@dataclass(frozen=True, kw_only=True)
class GroupLayout:
    """The prediction for `num_groups` groups of `num_ranks` ranks each."""

    num_groups: int
    num_ranks: int
    memory_gib: float  # of each rank
    num_sequences: int  # that each rank decodes at the same time; 0: the model does not fit
    cache_gib: float = 0.0  # the part of memory_gib for the tokens of these sequences
    decode_ms: float = 0.0  # of a step
    prefill_ms: float = 0.0  # of a step of `step_tokens`
    exchange_share: float = 0.0  # of a row's time
    rows_per_day: float = 0.0  # of all groups


class Planner:
    """Predicts layouts for one network, one machine and one kind of row."""

    def __init__(
        self, network: Network, hardware: Hardware, rows: Rows, gpus_per_node: int
    ) -> None:
        self._network = network
        self._hardware = hardware
        self._rows = rows
        self._gpus_per_node = gpus_per_node

    def layouts(self, num_gpus: int, numbers_of_ranks: Sequence[int]) -> Iterator[GroupLayout]:
        """Yield a layout for each number of ranks that fits the GPUs and divides the experts."""
        num_experts = self._network.config.text.n_routed_experts
        for num_ranks in numbers_of_ranks:
            is_possible = num_ranks == 1 or (num_experts and num_experts % num_ranks == 0)
            if is_possible and num_ranks <= num_gpus:
                yield self.layout(num_gpus // num_ranks, num_ranks)

    def layout(self, num_groups: int, num_ranks: int) -> GroupLayout:
        """Predict one layout."""
        num_sequences = self.num_sequences(num_ranks)
        memory_gib = self.memory_bytes(num_ranks, max(1, num_sequences)) / GIB
        common = {"num_groups": num_groups, "num_ranks": num_ranks, "memory_gib": memory_gib}
        if not num_sequences:
            return GroupLayout(**common, num_sequences=0)
        rows = self._rows
        decode = self.decode_step(num_ranks, num_sequences)
        prefill = self.prefill_step(num_ranks, rows.step_tokens)
        vision = self._network.vision(rows.visual_tokens, rows.frame_tokens)
        num_prefills = rows.prompt_tokens / rows.step_tokens
        num_decodes = rows.generated_tokens / num_sequences
        exchange_s = num_prefills * prefill.exchange_s + num_decodes * decode.exchange_s
        row_s = (
            self._hardware.vision_seconds(vision.flops)
            + num_prefills * prefill.seconds
            + num_decodes * decode.seconds
        )
        return GroupLayout(
            **common,
            num_sequences=num_sequences,
            cache_gib=num_sequences * self.cache_bytes_of_row() / GIB,
            decode_ms=1e3 * decode.seconds,
            prefill_ms=1e3 * prefill.seconds,
            exchange_share=exchange_s / row_s,
            rows_per_day=num_groups * num_ranks * DAY_S / row_s,
        )

    def decode_step(self, num_ranks: int, num_sequences: int) -> StepTime:
        """Predict a step that generates one token for each sequence, half-way through its text."""
        context_len = self._rows.prompt_tokens + self._rows.generated_tokens / 2
        num_tokens = self._of_busiest(num_sequences, num_ranks)
        return self._step(num_ranks, num_tokens, num_tokens, context_len, is_decode=True)

    def prefill_step(self, num_ranks: int, num_tokens: int) -> StepTime:
        """Predict a step that computes `num_tokens` prompt tokens."""
        prompt_tokens = self._rows.prompt_tokens
        busiest = self._of_busiest(num_tokens, num_ranks)
        ends = max(1.0, busiest / prompt_tokens)
        return self._step(num_ranks, busiest, ends, prompt_tokens / 2, is_decode=False)

    def _of_busiest(self, num_tokens: float, num_ranks: int) -> float:
        return num_tokens if num_ranks == 1 else num_tokens / self._rows.level

    def _step(
        self,
        num_ranks: int,
        num_tokens: float,
        num_sampled: float,
        context_len: float,
        *,
        is_decode: bool,
    ) -> StepTime:
        network, hardware = self._network, self._hardware
        skew = 1.0 if num_ranks == 1 else self._rows.skew
        num_copies = 0 if num_ranks == 1 else self._rows.num_copies
        experts = network.experts(num_tokens, num_ranks, num_copies)
        works = (
            network.dense(num_tokens),
            network.head(num_sampled),
            network.attention(num_tokens, context_len, is_decode=is_decode),
        )
        compute_s = sum(hardware.seconds(work.flops, work.num_bytes) for work in works)
        experts_s = hardware.seconds(skew * experts.flops, experts.num_bytes)
        compute_s += network.num_moe_layers * experts_s
        # In an exchange by all_to_all the host waits, which no CUDA graph can do.
        is_replayed = is_decode and num_ranks == 1
        layer_us = hardware.replay_us if is_replayed else hardware.launch_us
        least_s = network.config.text.num_hidden_layers * layer_us / 1e6
        exchange_s = self.exchange_s(num_ranks, num_tokens)
        return StepTime(max(compute_s, least_s), exchange_s)

    def exchange_s(self, num_ranks: int, num_tokens: float) -> float:
        """Return the seconds of the exchanges of a step: one for its plan, and those of layers."""
        if num_ranks == 1:
            return 0.0
        hardware = self._hardware
        in_node = min(num_ranks, self._gpus_per_node)
        remote = (num_ranks - in_node) / (num_ranks - 1)  # share of the other ranks
        latency_s = (hardware.net_latency_us if remote else hardware.link_latency_us) / 1e6
        sent = self._network.rows_sent(num_ranks) * num_tokens * self._network.row_bytes
        near_s = sent * (1 - remote) / (hardware.link_gbs * 1e9 * hardware.link_share)
        far_s = sent * remote / (hardware.net_gbs * 1e9 * hardware.link_share)
        layer_s = _EXCHANGES * latency_s + max(near_s, far_s)  # links and network work in parallel
        return latency_s + self._network.num_moe_layers * layer_s

    def num_sequences(self, num_ranks: int) -> int:
        """Return how many sequences fit into memory, up to the most that are wanted."""
        budget = 0.9 * self._hardware.memory_gib * GIB - self.memory_bytes(num_ranks, 0)
        each = self.memory_bytes(num_ranks, 1) - self.memory_bytes(num_ranks, 0)
        return max(0, min(self._rows.most_sequences, int(budget // each)))

    def memory_bytes(self, num_ranks: int, num_sequences: int) -> float:
        """Return the bytes of weights, cache, the largest tensors of a step, and libraries."""
        text, vision, rows = self._network.config.text, self._network.config.vision, self._rows
        copies = rows.step_tokens * max(1, text.num_experts_per_tok) * rows.skew
        of_experts = copies * (2 * text.hidden_size + 3 * text.moe_intermediate_size)
        of_vision = 4 * rows.step_tokens * (6 * vision.hidden_size + vision.intermediate_size)
        of_logits = num_sequences * text.vocab_size * 4
        return (
            self._network.weights_bytes(num_ranks, rows.num_copies if num_ranks > 1 else 0)
            + num_sequences * self.cache_bytes_of_row()
            + BF16_BYTES * max(of_experts, of_vision)
            + of_logits
            + 2 * GIB
        )

    def cache_bytes_of_row(self) -> int:
        """Return the bytes of a row's tokens in the cache, in whole blocks."""
        num_tokens = self._rows.prompt_tokens + self._rows.generated_tokens
        return -(-num_tokens // BLOCK_SIZE) * BLOCK_SIZE * self._network.cache_bytes


def best(layouts: Sequence[GroupLayout]) -> GroupLayout | None:
    """Return the layout with the most rows per day, or None if nothing fits.

    Of nearly equal ones it has the fewest ranks, because all ranks of a group fail together.
    """
    rates = [each.rows_per_day for each in layouts if each.num_sequences]
    if not rates:
        return None
    near = [
        each for each in layouts if each.num_sequences and each.rows_per_day >= _NEAR * max(rates)
    ]
    return min(near, key=lambda each: each.num_ranks)
