import pytest
import torch

from model.network.norm import RMSNorm


def published(x, weight, eps):
    """Normalise as `DeepseekV3RMSNorm` of the published code does."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [48, 100, 512, 2048])
def test_it_rounds_where_the_published_model_rounds(width, dtype):
    norm = RMSNorm(width, eps=1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight, mean=1.0, std=0.1)
    for num_rows in (0, 1, 33):
        x = torch.randn(num_rows, width).mul(3).to(dtype)
        assert torch.equal(norm(x), published(x, norm.weight, 1e-5))
