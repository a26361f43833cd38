"""Starts the groups of ranks of a deployment, and asks how they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

from ray.exceptions import RayError

from model.engine.config import EngineConfig
from model.engine.fit.capacity import Capacity
from model.inputs.processor import Processor
from parallel.experts.load import ExpertLoad
from parallel.experts.placement import place
from parallel.experts.policy import Exchange
from parallel.groups.client import Groups
from parallel.groups.errors import GroupError
from parallel.groups.golden import golden_requests
from parallel.groups.spec import GroupSpec
from parallel.groups.supervisor import GroupsStatus
from parallel.ranks.admission import AdmissionPolicy
from parallel.ranks.rank_spec import RankSpec
from parallel.ranks.worker import Engine
from pipeline.cluster.deployment import Deployment
from pipeline.cluster.nodes import require_checkpoint
from pipeline.config import PipelineConfig
from pipeline.monitor.snapshot import RankStats

# Makes the engine of a rank from the checkpoint, the engine's configuration, how ranks exchange
# rows, and which rank of its group it is; the latter is None if the group has one rank.
EngineFactory = Callable[[Path, EngineConfig, Exchange, RankSpec | None], Engine]


def load_engine(
    checkpoint: Path, config: EngineConfig, exchange: Exchange, rank_spec: RankSpec | None
) -> Engine:
    """Load the engine of a rank, in the process that will use it.

    A rank of several loads only its shard of the experts.

    Raises:
        CheckpointError: this node has no such checkpoint.
    """
    require_checkpoint(checkpoint)
    # Imported here, since only ranks need torch.
    if rank_spec is None:
        from model.engine.engine import Engine as KimiVLEngine

        return KimiVLEngine.from_checkpoint(checkpoint, config)
    from parallel.ranks.ep_engine import load_ep_engine

    return load_ep_engine(checkpoint, config, rank_spec, exchange)


def start_groups(
    config: PipelineConfig,
    deployment: Deployment,
    load: ExpertLoad | None,
    engine_factory: EngineFactory,
    admission: AdmissionPolicy,
    max_requests: int,
) -> Groups:
    """Start the groups of a deployment; return when the first one is ready.

    Experts are placed by `load`, from `wanted_load`.

    Raises:
        ValueError: ranks have no room for the copies of experts, or would reserve the same memory
            for their caches.
        GroupError: no group could be started; whatever had started was stopped again.
    """
    _check_cache(config.engine, deployment)
    engine = deployment.engine_of(config.engine)
    topologies = None
    if load is not None and deployment.num_ranks > 1:
        topologies = place(load, deployment.num_ranks, config.expert_copies)
    tokenizer = Processor.from_checkpoint(config.checkpoint).tokenizer
    spec = GroupSpec(
        engine_factory=partial(engine_factory, config.checkpoint, engine, config.exchange),
        num_ranks=deployment.num_ranks,
        num_cpus_per_rank=0.25,  # what Ray accounts for; torch uses the engine's `num_threads`
        num_gpus_per_rank=1.0 if deployment.device == "cuda" else 0.0,
        placement=config.placement,
        admission=admission,
        max_requests=max_requests,
        topologies=topologies,
        golden=tuple(golden_requests(tokenizer.num_ordinary)),
    )
    if deployment.device == "cpu":
        # A rank encodes the images of a step before it exchanges rows. On CPUs this takes minutes,
        # in which the others must not give it up; the supervisor finds dead ranks by itself.
        spec = replace(spec, exchange_timeout_s=spec.stall_timeout_s)
    return Groups.start(
        spec, num_groups=deployment.num_groups, max_group_failures=config.max_group_failures
    )


def _check_cache(engine: EngineConfig, deployment: Deployment) -> None:
    """Refuse caches that would reserve the same memory several times.

    Dividing the fraction by the ranks of a machine would not do. Ray places ranks anew after each
    failure, and memory that a rank finds free will be taken by weights that other ranks have yet to
    read and by cache blocks that they have yet to write.
    """
    num_ranks = deployment.num_groups * deployment.num_ranks
    if engine.cache_fraction is not None and deployment.device == "cpu" and num_ranks > 1:
        raise ValueError(
            f"cache_fraction={engine.cache_fraction:g}, but {num_ranks} ranks on CPUs may "
            "share a machine, and each would take its fraction of the same memory; give each "
            "cache a size by --cache-gib"
        )


def rank_stats(status: Callable[..., GroupsStatus], fresh: bool) -> RankStats | None:
    """Return what the ranks tell of themselves, by group, for `polling`.

    None means that the supervisor is gone; the driver's own loop meets that too, and raises it.
    `status` is that method of the groups; `fresh` asks the ranks now, in place of what they last
    told.
    """
    try:
        return status(fresh=fresh).rank_stats
    except (GroupError, RayError):
        return None


def loading_text(stats: RankStats | None) -> str:
    """Say how long the slowest of the ranks that have loaded took; empty if none tells it."""
    ranks = [rank for group in (stats or {}).values() for rank in group if "load_s" in rank]
    if not ranks:
        return ""
    slowest = max(ranks, key=lambda rank: rank["load_s"])
    load_s, rate = slowest["load_s"], slowest["load_gb_per_s"]
    return f"the slowest rank read its weights in {load_s:.1f} s, {rate:.2f} GB/s"


def rank_numbers(status: GroupsStatus) -> Mapping[str, float]:
    """Average how well ranks kept together, over all groups; empty if each rank was alone.

    `level` is the mean number of tokens of a rank in a step divided by the greatest one, so 1 is
    best; `wait_share` the share of the time of steps in which a rank waited for others to begin
    them; `steps` the number of steps with work. All of them count since the last failure of a
    group, as of the last time that ranks were asked.
    """
    ranks = [rank for group in status.rank_stats.values() for rank in group if "level" in rank]
    if not ranks:
        return {}
    names = ("level", "wait_share", "steps")
    return {name: round(sum(rank[name] for rank in ranks) / len(ranks), 4) for name in names}


@dataclass(frozen=True)
class Capacities:
    """What the engines of all ranks that run take on at a time."""

    least: Capacity | None = None  # of the rank with the smallest cache; None: no rank tells it
    num_sequences: int = 0  # that fill the batches of all ranks
    num_out_of_memory: int = 0  # tries of steps that the memory did not suffice for

    @classmethod
    def of(cls, stats: RankStats | None) -> Self:
        """Find them among what `rank_stats` returned."""
        ranks = [rank for group in (stats or {}).values() for rank in group]
        capacities = [found for rank in ranks if (found := Capacity.of(rank)) is not None]
        return cls(
            least=min(capacities, key=lambda each: each.cache_tokens, default=None),
            num_sequences=sum(each.batch_size for each in capacities),
            num_out_of_memory=int(sum(rank.get("out_of_memory", 0) for rank in ranks)),
        )
