"""Implement Muon: momentum with orthogonalised matrices, for plain ones and stacks of experts.

Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024); with the factor
0.2 * sqrt(max(rows, columns)) of Moonlight (arXiv 2502.16982, eq. 4), a step changes a matrix about
as much as a step of AdamW would.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the odd polynomial that moves singular values to 1


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum; a parameter [E, rows, columns] is E matrices."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore
        """Update all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum: Tensor = state["momentum"]
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"])
                matrices = update.flatten(1) if update.ndim == 4 else update  # a convolution
                step = orthogonal(matrices).view_as(parameter)
                scale = 0.2 * max(matrices.shape[-2:]) ** 0.5
                parameter.add_(step, alpha=-group["lr"] * scale)


def orthogonal(x: Tensor) -> Tensor:
    """Return nearly the nearest orthogonal matrix of each matrix in `x` [..., rows, columns]."""
    a, b, c = _COEFFICIENTS
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()  # precise enough, and faster
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).float()
