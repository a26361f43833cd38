"""`Deployment`: how many copies of the model, of how many ranks each, on which device, and why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model.config import TextConfig
from model.engine.config import EngineConfig
from parallel.experts.load import ExpertLoad
from parallel.experts.placement import place
from parallel.experts.policy import explain
from pipeline.cluster.expert_load import read_load
from pipeline.config import PipelineConfig
from pipeline.filesystems import without_secrets


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """How a run uses a cluster."""

    device: str  # "cpu" or "cuda"
    num_groups: int  # copies of the model
    num_ranks: int  # of each group
    why: str  # these numbers, for people
    dispatch: str  # which dispatcher brings rows to experts, and why
    dtype: str = ""  # why this machine would not compute in the stored dtype; empty if it does

    def __str__(self) -> str:
        groups = f"{self.num_groups} group{'s' * (self.num_groups > 1)}"
        ranks = f"{self.num_ranks} rank{'s' * (self.num_ranks > 1)}"
        dtype = f"; this machine {self.dtype}" if self.dtype else ""
        return f"{groups} of {ranks} on {self.device}: {self.why}; {self.dispatch}{dtype}"

    def engine_of(self, engine: EngineConfig) -> EngineConfig:
        """Return the configuration of the engine of each rank.

        On CPUs all ranks count as neighbours, because Ray may place them on one machine.
        """
        neighbours = self.num_groups * self.num_ranks if self.device == "cpu" else 1
        return replace(engine, device=self.device, ranks_per_machine=neighbours)

    def explained(self, config: PipelineConfig) -> "Deployment":
        """Add what `dtype="auto"` means on this machine; each rank decides for its own machine.

        Raises:
            CheckpointError: the headers of the weight files cannot be read.
        """
        from model.engine.dtype import choose_dtype  # here, as it imports torch

        return replace(
            self, dtype=choose_dtype(config.checkpoint, self.engine_of(config.engine)).why
        )


def check_ranks(config: PipelineConfig, num_experts: int) -> None:
    """Raise a `ValueError` if `expert_parallel` does not divide the number of experts."""
    ranks = config.expert_parallel or 1
    if ranks > 1 and (num_experts == 0 or num_experts % ranks):
        raise ValueError(
            f"expert_parallel={ranks}, but the checkpoint's {num_experts} routed experts do not "
            f"divide over {ranks} ranks"
        )


def wanted_load(config: PipelineConfig, text: TextConfig) -> ExpertLoad | None:
    """Read the load by which experts are to be placed; None if they are placed in their order.

    Raises:
        ValueError: it is no record of load, the record is of other experts, or ranks have no room
            for the copies.
    """
    if config.expert_placement is None:
        return None
    load = read_load(config.expert_placement, text)
    if config.expert_parallel not in (None, 1):
        place(load, config.expert_parallel, config.expert_copies)
    return load


def choose_deployment(
    config: PipelineConfig, gpus_of_nodes: Sequence[int], num_experts: int
) -> Deployment:
    """Choose what the user left open. Every GPU is used; without GPUs one rank is.

    Raises:
        ValueError: GPUs are asked for and there are none, or no group of so many ranks could ever
            be placed on them.
    """
    nodes = [num_gpus for num_gpus in gpus_of_nodes if num_gpus]
    device = _choose_device(config, sum(nodes))
    if device == "cpu":
        groups, ranks = config.num_groups or 1, config.expert_parallel or 1
        is_asked = config.num_groups or config.expert_parallel
        why = "as asked" if is_asked else "auto takes one rank where there is no GPU"
    else:
        groups, ranks, why = _share_gpus(config, nodes, num_experts)
    dispatch = explain(config.exchange, ranks, device) + _explain_placement(config, ranks)
    return Deployment(device=device, num_groups=groups, num_ranks=ranks, why=why, dispatch=dispatch)


def _choose_device(config: PipelineConfig, num_gpus: int) -> str:
    """Return "cpu" or "cuda"; raise a `ValueError` if GPUs are asked for and there are none."""
    if config.device == "auto":
        return "cuda" if num_gpus else "cpu"
    # Groups of given number and size can wait for nodes that join the cluster later.
    can_wait = config.num_groups and config.expert_parallel
    if config.device == "cuda" and not num_gpus and not can_wait:
        raise ValueError(
            "device=cuda, but there is no GPU here; use --device auto or cpu, or give --groups "
            "and --expert-parallel if nodes are still to come"
        )
    return config.device


def _share_gpus(
    config: PipelineConfig, nodes: Sequence[int], num_experts: int
) -> tuple[int, int, str]:
    """Choose the number of groups and of the ranks of each, and say why.

    Raises:
        ValueError: there is no room for a group of so many ranks.
    """
    # A group must lie on one node unless the user allows otherwise, so the GPUs that are left over
    # on several nodes do not make another group.
    places = nodes if config.placement == "STRICT_PACK" else [sum(nodes)]
    groups, ranks, gpus = config.num_groups, config.expert_parallel, _gpus_text(nodes)
    if ranks and groups:
        return groups, ranks, "as asked"
    if ranks:
        groups = _room(places, ranks)
        if not groups:
            raise ValueError(_no_place(config, ranks, nodes))
        return groups, ranks, f"as many groups of {ranks} as {gpus} hold"
    if groups:
        # As large as there is room for and the experts divide into.
        sizes = range(2, sum(nodes) + 1) if num_experts else ()
        fitting = [n for n in sizes if not num_experts % n and _room(places, n) >= groups]
        ranks = max(fitting, default=1)
        why = f"{gpus} shared by {groups} groups, {num_experts} experts by their ranks"
        if len(places) > 1:
            why += ", which lie on one node unless --placement lets them lie on several"
        return groups, ranks, why
    why = (
        f"one copy on each of {gpus} needs no exchange; where a copy does not fit, choose "
        "--expert-parallel 2 or more"
    )
    return sum(nodes), 1, why


def _room(places: Sequence[int], num_ranks: int) -> int:
    """Count the groups for which there is room, if each lies in one place."""
    return sum(num_gpus // num_ranks for num_gpus in places)


def _gpus_text(nodes: Sequence[int]) -> str:
    """Say how many GPUs there are, such as `8 GPUs` or `8 GPUs (2 nodes of 3, 1 of 2)`."""
    text = f"{sum(nodes)} GPUs"
    if len(nodes) < 2:
        return text
    (first, num_first), *others = sorted(Counter(nodes).items(), reverse=True)
    alike = f"{num_first} node{'s' * (num_first > 1)} of {first}"
    return f"{text} ({', '.join([alike, *(f'{num_nodes} of {num}' for num, num_nodes in others)])})"


def _no_place(config: PipelineConfig, num_ranks: int, nodes: Sequence[int]) -> str:
    where, most, or_else = "in all", sum(nodes), "add nodes"
    if config.placement == "STRICT_PACK":
        where, most, or_else = "on one node", max(nodes), "use --placement pack"
    return (
        f"expert_parallel={num_ranks} needs {num_ranks} GPUs {where}, and the cluster has "
        f"{_gpus_text(nodes)}; ask for at most {most}, or {or_else}"
    )


def _explain_placement(config: PipelineConfig, num_ranks: int) -> str:
    if config.expert_placement is None:
        return ""
    if num_ranks == 1:
        return "; one rank leaves nothing to place"
    copies = f", with {config.expert_copies} copies more on each rank" * bool(config.expert_copies)
    return f"; experts placed by {without_secrets(config.expert_placement)}{copies}"
