"""`Deployment`: how many copies of the model, of how many ranks each, on which device; and why."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from model.config import TextConfig
from model.engine.config import EngineConfig
from model.inputs.processor import Processor
from parallel.experts.load import ExpertLoad
from parallel.experts.placement import place
from parallel.experts.policy import Exchange, explain
from parallel.groups.client import Groups
from parallel.groups.golden import golden_requests
from parallel.groups.spec import GroupSpec
from parallel.groups.supervisor import GroupsStatus
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.worker import AdmissionPolicy, Engine
from pipeline.cluster.expert_load import read_load
from pipeline.cluster.nodes import require_checkpoint
from pipeline.config import PipelineConfig
from pipeline.filesystems import without_secrets

# Checkpoint, budgets, exchange, and the rank's seat where there are several -> its engine.
EngineFactory = Callable[[Path, EngineConfig, Exchange, RankSpec | None], Engine]


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What a run uses of a cluster."""

    device: str  # "cpu" or "cuda"
    num_groups: int
    num_ranks: int  # of each group
    why: str
    dispatch: str  # which dispatcher, and why

    def __str__(self) -> str:
        groups = f"{self.num_groups} group{'s' * (self.num_groups > 1)}"
        ranks = f"{self.num_ranks} rank{'s' * (self.num_ranks > 1)}"
        return f"{groups} of {ranks} on {self.device}: {self.why}; {self.dispatch}"


def load_engine(
    checkpoint: Path, config: EngineConfig, exchange: Exchange, seat: RankSpec | None
) -> Engine:
    """The engine of a checkpoint, in the process that will use it: all of it, or a rank's share."""
    require_checkpoint(checkpoint)
    if seat is None:
        from model.engine.engine import Engine as KimiVLEngine  # torch, which only ranks need

        return KimiVLEngine.from_checkpoint(checkpoint, config)
    from parallel.ranks.ep_engine import load_ep_engine

    return load_ep_engine(checkpoint, config, seat, exchange)


def check_ranks(config: PipelineConfig, num_experts: int) -> None:
    """Refuse a number of ranks that cannot share the experts.

    Raises:
        ValueError: it does not divide them.
    """
    ranks = config.expert_parallel or 1
    if ranks > 1 and (num_experts == 0 or num_experts % ranks):
        raise ValueError(
            f"expert_parallel={ranks}, but the checkpoint's {num_experts} routed experts do not "
            f"divide over {ranks} ranks"
        )


def wanted_load(config: PipelineConfig, text: TextConfig) -> ExpertLoad | None:
    """What the placement of experts goes by; None where they lie in their order.

    Raises:
        ValueError: the record is none, or of other experts, or there is no room for the copies.
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
    """Fill in what the user left open; every GPU is used, and one rank where there is none.

    Args:
        config: what the user asked for.
        gpus_of_nodes: of the cluster, for each of its nodes.
        num_experts: routed experts of the checkpoint.

    Raises:
        ValueError: GPUs are asked for, and there is none; or no group of so many ranks could ever
            be placed on them.
    """
    device = config.device
    nodes = [num_gpus for num_gpus in gpus_of_nodes if num_gpus]
    num_gpus = sum(nodes)
    are_to_come = bool(config.num_groups and config.expert_parallel)  # clusters may grow
    if device == "cuda" and not num_gpus and not are_to_come:
        raise ValueError(
            "device=cuda, but there is no GPU here; take --device auto or cpu, or give --groups "
            "and --expert-parallel if nodes are still to come"
        )
    if device == "auto":
        device = "cuda" if num_gpus else "cpu"
    ranks, groups = config.expert_parallel, config.num_groups
    if device == "cpu":
        why = "as asked" if ranks or groups else "auto takes one rank where there is no GPU"
        return _machines(config, device, groups or 1, ranks or 1, why)
    # What is left over on each of several nodes makes no group that must lie on one.
    places = nodes if config.placement == "STRICT_PACK" else [num_gpus]
    if ranks and num_gpus and not are_to_come and not _room(places, ranks):
        raise ValueError(_no_place(config, ranks, nodes))
    if ranks and groups:
        why = "as asked"
    elif ranks:
        groups = max(1, _room(places, ranks))
        why = f"as many groups of {ranks} as {_say_gpus(nodes)} hold"
    elif groups:
        divisors = [r for r in range(2, num_gpus + 1) if num_experts and not num_experts % r]
        ranks = max((r for r in divisors if _room(places, r) >= groups), default=1)
        why = f"{_say_gpus(nodes)} shared by {groups} groups, {num_experts} experts by their ranks"
        if len(places) > 1:
            why += ", which lie on one node unless --placement lets them lie on several"
    else:
        ranks, groups = 1, max(1, num_gpus)
        why = (
            f"one copy on each of {_say_gpus(nodes)} needs no exchange; where a copy does not fit, "
            "choose --expert-parallel 2 or more"
        )
    return _machines(config, device, groups, ranks, why)


def _room(places: Sequence[int], num_ranks: int) -> int:
    """How many groups there is room for, of which each lies in one place."""
    return sum(num_gpus // num_ranks for num_gpus in places)


def _say_gpus(nodes: Sequence[int]) -> str:
    """Such as `8 GPUs` of one node, and `8 GPUs (2 nodes of 3, 1 of 2)` of three."""
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
        f"{_say_gpus(nodes)}; ask for at most {most}, or {or_else}"
    )


def _machines(
    config: PipelineConfig, device: str, num_groups: int, num_ranks: int, why: str
) -> Deployment:
    return Deployment(
        device=device,
        num_groups=num_groups,
        num_ranks=num_ranks,
        why=why,
        dispatch=explain(config.exchange, num_ranks, device)
        + _explain_placement(config, num_ranks),
    )


def _explain_placement(config: PipelineConfig, num_ranks: int) -> str:
    if config.expert_placement is None:
        return ""
    if num_ranks == 1:
        return "; one rank leaves nothing to place"
    copies = f", with {config.expert_copies} copies more on each rank" * bool(config.expert_copies)
    return f"; experts placed by {without_secrets(config.expert_placement)}{copies}"


def start_groups(
    config: PipelineConfig,
    machines: Deployment,
    load: ExpertLoad | None,
    engine_factory: EngineFactory,
    company: AdmissionPolicy,
) -> Groups:
    """Start what was chosen; returns when the first group is ready.

    Args:
        config: of the run.
        machines: what was chosen.
        load: as `wanted_load`.
        engine_factory: makes the engine of each rank.
        company: of each rank.

    Raises:
        ValueError: there is no room for the copies of experts, or ranks would promise the same
            memory to their caches.
        GroupError: no group could be started; nothing is left behind.
    """
    _check_cache(config.engine, machines)
    engine = replace(config.engine, device=machines.device)
    topologies = None
    if load is not None and machines.num_ranks > 1:
        topologies = place(load, machines.num_ranks, config.expert_copies)
    tokenizer = Processor.from_checkpoint(config.checkpoint).tokenizer
    spec = GroupSpec(
        engine_factory=partial(engine_factory, config.checkpoint, engine, config.exchange),
        num_ranks=machines.num_ranks,
        num_cpus_per_rank=0.25,  # of Ray's accounts; torch uses the engine's `num_threads`
        num_gpus_per_rank=1.0 if machines.device == "cuda" else 0.0,
        placement=config.placement,
        company=company,
        topologies=topologies,
        golden=tuple(golden_requests(tokenizer.num_ordinary)),
    )
    if machines.device == "cpu":
        # A rank encodes the images of a step before its exchange: on CPUs minutes, and no sign of
        # death, which the supervisor finds by itself.
        spec = replace(spec, exchange_timeout_s=spec.stall_timeout_s)
    return Groups.start(
        spec, num_groups=machines.num_groups, max_group_failures=config.max_group_failures
    )


def _check_cache(engine: EngineConfig, machines: Deployment) -> None:
    """Refuse what would promise memory more than once.

    Dividing would not do: Ray places ranks anew after each failure, and what a rank finds free has
    in it the weights that others have yet to read and the blocks that they have yet to write.
    """
    num_ranks = machines.num_groups * machines.num_ranks
    if engine.cache_fraction is not None and machines.device == "cpu" and num_ranks > 1:
        raise ValueError(
            f"cache_fraction={engine.cache_fraction:g}, but {num_ranks} ranks on CPUs may "
            "share a machine, and each would take its fraction of the same memory; give each "
            "cache a size by --cache-gib"
        )


def rank_numbers(status: GroupsStatus) -> Mapping[str, float]:
    """How well ranks kept together, over all groups: empty where each was alone.

    `level`: mean by greatest tokens of a rank per step, 1 is best. `wait_share`: of the time of
    steps, how much a rank waited for others to begin them. `steps`: with work. All since the last
    failure of a group, and up to the last look at it.
    """
    ranks = [rank for group in status.rank_stats.values() for rank in group if "level" in rank]
    if not ranks:
        return {}
    names = ("level", "wait_share", "steps")
    return {name: round(sum(rank[name] for rank in ranks) / len(ranks), 4) for name in names}
