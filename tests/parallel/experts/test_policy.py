"""Which dispatcher a step uses, and that the explanation says the same."""

import itertools

import pytest

from parallel.experts.policy import Exchange, choose, explain

CHOICES = ("auto", "all_to_all", "all_gather")


@pytest.mark.parametrize(
    ("choice", "num_ranks", "device"),
    list(itertools.product(CHOICES, (2, 4, 8), ("cpu", "cuda"))),
)
def test_the_explanation_names_what_is_chosen(choice, num_ranks, device):
    chosen = {
        choose(choice, is_decode=is_decode, num_ranks=num_ranks, device=device)
        for is_decode in (True, False)
    }
    said = {
        name
        for name in CHOICES[1:]
        if f"{name} " in explain(Exchange(choice), num_ranks, device) + " "
        or f"{name}:" in explain(Exchange(choice), num_ranks, device)
    }
    assert said == chosen


def test_one_rank_needs_no_exchange():
    assert "local" in explain(Exchange(), 1, "cuda")


def test_a_narrow_wire_is_named():
    assert "travel as float8" in explain(Exchange(wire_dtype="float8"), 2, "cpu")
    assert "travel" not in explain(Exchange(), 2, "cpu")
