"""Keep experts equally loaded through the correction bias of the routers, without any loss.

Letters: E routed experts.
"""

import torch
from torch import Tensor, nn

from model.network.moe import Router


class LoadBalancer:
    """Counts, by forward hooks, which experts the routers of a model choose.

    `step` then raises the bias of experts that had fewer tokens than the mean and lowers the
    others (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    """

    def __init__(self, model: nn.Module) -> None:
        self.loads: dict[Router, Tensor] = {}  # [E] tokens since the last step
        for router in model.modules():
            if isinstance(router, Router):
                self.loads[router] = torch.zeros(router.config.n_routed_experts)
                router.register_forward_hook(self._count)

    def _count(self, router: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]) -> None:
        assert isinstance(router, Router)
        load = self.loads[router]
        load += torch.bincount(output[0].flatten(), minlength=len(load))

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Change every bias by `rate`, and reset the counts."""
        for router, load in self.loads.items():
            router.e_score_correction_bias.add_((load.mean() - load).sign(), alpha=rate)
            load.zero_()

    def extremes(self) -> tuple[float, float]:
        """Return the least and the greatest load of an expert, by the mean of its layer."""
        relative = torch.stack([load / load.mean() for load in self.loads.values()])
        return float(relative.min()), float(relative.max())
