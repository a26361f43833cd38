"""The object stores are measured through any node that answers."""

from types import SimpleNamespace

import grpc
import pytest

from pipeline.monitor import object_store


@pytest.fixture
def ask(monkeypatch):
    """Nodes by port; `ask` looks at their stores, of which the named ones answer."""
    nodes = [
        {"Alive": alive, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
        for port, alive in ((1, False), (2, True), (3, True))
    ]
    state = SimpleNamespace(node_table=lambda: nodes)
    monkeypatch.setattr(object_store, "get_state_from_address", lambda _: state)

    def asked(*answering: int) -> object_store.ObjectStoreUse | None:
        def reply(state, address, port, *, timeout_seconds):
            if port not in answering:
                raise grpc.RpcError("connection refused")
            stats = SimpleNamespace(object_store_bytes_used=port, spilled_bytes_total=10 * port)
            return SimpleNamespace(store_stats=stats)

        monkeypatch.setattr(object_store, "get_memory_info_reply", reply)
        return object_store.object_store_use("gcs")

    return asked


def test_object_stores_are_seen_through_any_node_that_answers(ask):
    assert ask(2, 3) == object_store.ObjectStoreUse(2, 20)
    assert ask(3) == object_store.ObjectStoreUse(
        3, 30
    )  # as while a node that was killed is called alive


def test_object_stores_are_unknown_where_no_node_answers(ask):
    assert ask(1) is None  # dead nodes are not asked
