"""How two outputs are compared."""

import pytest

from jobs import chaos


def row(number, **changes):
    return {"row_id": number, "status": "ok", "caption": "a", "attempts": 1, **changes}


@pytest.mark.parametrize(
    ("wild", "expected"),
    [
        pytest.param([row(0), row(1, attempts=2)], {}, id="equal"),
        pytest.param([row(0)], {"lost": 1, "rows": 1}, id="lost"),
        pytest.param([row(0), row(1), row(1)], {"doubled": 1, "rows": 3}, id="doubled"),
        pytest.param([row(0), row(1, caption="b")], {"changed": 1}, id="changed"),
        pytest.param([row(0), row(1), row(2)], {"changed": 1, "rows": 3}, id="invented"),
    ],
)
def test_every_difference_is_counted(wild, expected):
    found = chaos.compare([row(0), row(1)], wild)

    wanted = {"rows": 2, "lost": 0, "doubled": 0, "changed": 0, **expected}
    assert {name: found[name] for name in wanted} == wanted
