"""What a step asks of a GPU hardly depends on the number of sequences, and is little."""

import json

import pytest
import torch

from jobs.bench import gpu_steps
from jobs.bench.gpu_steps import Counts, count, fake_model, main, prefill_counts
from jobs.bench.measure.fake_gpu import fake_gpu
from jobs.planning.shapes import moonlight
from model.network.kernels.install import install

LAYERS = 27  # of the published network


@pytest.fixture(scope="module")
def counted():
    """Counts of two and of three layers: their difference is one layer with experts."""
    return count(moonlight(2)), count(moonlight(3))


def of_all_layers(two, three):
    return two + (LAYERS - 2) * (three - two)


def test_a_decode_of_256_sequences_is_as_cheap_for_the_host_as_one(counted):
    two, three = (found["ops"] for found in counted)
    ops = {number: of_all_layers(two[number], three[number]) for number in two}
    assert list(ops) == ["1", "32", "256"]
    assert ops["256"] <= 1.1 * ops["1"]
    assert max(ops.values()) <= 1500


def test_a_decode_waits_for_the_device_at_most_twice(counted):
    for found in counted:
        assert set(found["host_waits"]) == {"1", "32", "256"}
        assert 1 <= max(found["host_waits"].values()) <= 2


def test_a_prefill_takes_few_operations(counted):
    two, three = (found["prefill_ops"] for found in counted)
    assert of_all_layers(two, three) <= 1500


def test_the_last_line_is_the_counts(counted, capsys, monkeypatch):
    monkeypatch.setattr(
        gpu_steps, "count", lambda config: counted[config.text.num_hidden_layers - 2]
    )
    assert main(["--layers", "3"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found == {"layers": 3, **counted[1]}


def test_operations_and_waits_are_seen():
    with fake_gpu(), Counts() as counts:
        x = torch.tensor([[1.0] * 4] * 4, device="cuda")  # from ordinary memory
        torch.nn.functional.linear(x, x).view(16)
    assert counts.host_waits == 1
    assert counts.by_name == {"_to_copy": 1, "mm": 1}


def test_plain_torch_takes_many_more_operations_for_a_prefill():
    with torch.no_grad(), fake_gpu():
        model = fake_model(moonlight(2))
        plain = prefill_counts(model).ops
        install(model)
        assert prefill_counts(model).ops < plain - 20
