import pytest
import torch

from model import memory
from model.memory import available_bytes, free_bytes
from model.network.moe import ExpertShard, LocalDispatcher
from model.network.weights import load_model
from tests.tiny import tiny_checkpoint

GIB = 1 << 30


def machine(root, available_gib, groups="", files=()):
    (root / "proc/self").mkdir(parents=True)
    lines = f"MemTotal: 99 kB\nMemAvailable: {available_gib * GIB // 1024} kB\n"
    (root / "proc/meminfo").write_text(lines)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files:
        (root / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / name).write_text(f"{text}\n")
    return available_bytes(root)


def version_2(folder, limit, used_gib, droppable_gib=0):
    stat = f"anon 5\ninactive_file {droppable_gib * GIB}"
    values = (("memory.max", limit), ("memory.current", used_gib * GIB), ("memory.stat", stat))
    return [(f"{folder}{name}", value) for name, value in values]


def test_without_limits_it_is_what_the_machine_has(tmp_path):
    assert machine(tmp_path, 7) == 7 * GIB


def test_the_tightest_group_on_the_way_up_counts(tmp_path):
    files = [
        *version_2("", "max", 30),
        *version_2("job/", 6 * GIB, 4, droppable_gib=1),
        *version_2("job/step/", 20 * GIB, 4),
    ]
    assert machine(tmp_path, 7, "0::/job/step\n", files) == 3 * GIB


def test_a_group_over_its_limit_has_nothing(tmp_path):
    assert machine(tmp_path, 7, "0::/", version_2("", GIB, 2)) == 0


def test_a_container_of_the_old_version_is_seen_at_the_top(tmp_path):
    files = [
        ("memory/memory.limit_in_bytes", 4 * GIB),
        ("memory/memory.usage_in_bytes", 3 * GIB),
        ("memory/memory.stat", f"total_inactive_file {GIB // 2}"),
    ]
    groups = "5:cpu,cpuacct:/docker/12ab\n4:memory:/docker/12ab\n0::/\n"
    assert machine(tmp_path, 7, groups, files) == 1.5 * GIB


def test_a_system_without_meminfo_asks_for_a_number(tmp_path):
    with pytest.raises(ValueError, match="give the cache's size in GiB"):
        available_bytes(tmp_path)


def test_this_machine_has_some():
    assert 0 < free_bytes(torch.device("cpu")) < 1 << 50


def test_weights_that_cannot_fit_are_refused_before_they_are_read(monkeypatch, tmp_path):
    tiny_checkpoint(tmp_path)
    needed = sum(parameter.nbytes for parameter in load_model(tmp_path).parameters())
    monkeypatch.setattr(memory, "available_bytes", lambda: needed - 1)
    with pytest.raises(ValueError, match="are free on cpu; share the experts"):
        load_model(tmp_path)
    shard = ExpertShard(range(4), LocalDispatcher())
    load_model(tmp_path, shards=lambda _: shard)  # a quarter of the experts does fit
