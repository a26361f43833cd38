"""A rank's share of every layer, and how its tokens find the experts that others hold.

Layers may place their experts differently, but all have equally many slots a rank. So one
dispatcher serves them all: it brings rows to slots, and each layer has its own table from experts
to slots.

Letters: E routed experts, R ranks, T tokens, K experts per token.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import TextConfig
from model.network.moe import Dispatch, Dispatcher, ExpertShard
from parallel.experts.topology import Topology

Topologies = Mapping[int, Topology]  # by layer


def even_topologies(text: TextConfig, num_ranks: int) -> Topologies:
    """Equal shares in the order of the experts, in every layer.

    Raises:
        ValueError: the experts do not divide.
    """
    even = Topology.even(text.n_routed_experts, num_ranks)
    return dict.fromkeys(filter(text.is_moe_layer, range(text.num_hidden_layers)), even)


def num_held(topologies: Topologies) -> int:
    """The slots of each rank, equally many in every layer."""
    (number,) = {each.num_held for each in topologies.values()}
    return number


def shards_of(
    topologies: Topologies, rank: int, dispatcher: Dispatcher, device: torch.device
) -> dict[int, ExpertShard]:
    """What `rank` holds of each layer.

    Args:
        topologies: of all layers with routed experts.
        rank: of the group.
        dispatcher: to slots.
        device: of the tokens.
    """
    return {
        layer: ExpertShard(each.held[rank], ByExpert(dispatcher, each.slots(rank).to(device)))
        for layer, each in topologies.items()
    }


@dataclass(frozen=True)
class ByExpert:
    """A dispatcher to slots, called with experts; as `model.network.moe.Dispatcher`."""

    dispatcher: Dispatcher
    slots: Tensor  # [E] int64

    def dispatch(self, x: Tensor, expert_ids: Tensor, weights: Tensor) -> Dispatch:
        """As `model.network.moe.Dispatcher.dispatch`."""
        return self.dispatcher.dispatch(x, self.slots[expert_ids], weights)
