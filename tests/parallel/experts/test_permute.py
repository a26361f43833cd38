"""Rows between the exchange and the experts, in the example of `RowsByExpert`."""

import torch

from parallel.experts.permute import RowsByExpert, count_copies

ROWS = torch.tensor([[1.0], [2.0], [3.0], [4.0]])  # a, b, c, d
LOCAL_IDS = torch.tensor([[0, 1], [1, -1], [0, -1], [1, 0]])


def test_rows_by_rank_stand_by_expert_and_their_sums_by_row_again():
    weights = torch.tensor([[0.5, 0.25], [0.5, 9.0], [2.0, 9.0], [1.0, 3.0]])
    by_expert = RowsByExpert(ROWS, LOCAL_IDS, weights, num_local_experts=2, num_copies=6)
    assert by_expert.rows[:, 0].tolist() == [1, 3, 4, 1, 2, 4]  # a c d | a b d
    y = torch.tensor([[10.0], [20.0], [30.0], [100.0], [200.0], [300.0]])
    a, b, c, d = by_expert.partial_sums(y)[:, 0].tolist()
    assert a == 0.5 * 10 + 0.25 * 100
    assert b == 0.5 * 200
    assert c == 2.0 * 20
    assert d == 1.0 * 300 + 3.0 * 30


def test_copies_of_no_expert_are_not_counted():
    assert count_copies(LOCAL_IDS, 3).tolist() == [3, 3, 0]
