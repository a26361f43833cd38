"""How much memory is free: on a GPU, or on this machine within the limits of its control groups."""

from collections.abc import Iterator
from pathlib import Path

import torch

_GIB = 1 << 30
# Of a control group: the files of its limit and its use, and the key in memory.stat of the file
# cache, which counts as used although the kernel drops it when memory is short.
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def free_bytes(device: torch.device) -> int:
    """Return the bytes that can still be reserved on `device`; ValueError if that is unknown."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # gives back what torch keeps for itself
        return torch.cuda.mem_get_info(device)[0]
    return available_bytes()


def require_room(needed: int, device: torch.device) -> None:
    """Refuse `needed` bytes of weights that do not fit, before the system kills a process for them.

    Raises ValueError: less is free. Nothing is refused where a system does not say what is free.
    """
    try:
        free = free_bytes(device)
    except ValueError:
        return
    if needed > free:
        raise ValueError(
            f"the weights take {needed / _GIB:.1f} GiB and {free / _GIB:.1f} are free on {device}; "
            "share the experts among more ranks, hold fewer copies of them, or free memory"
        )


def available_bytes(root: Path = Path("/")) -> int:
    """Return the bytes of main memory that this process can still take without swapping.

    `root` holds `proc` and `sys`. Raises ValueError: this system has no /proc/meminfo.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError as error:
        raise ValueError(
            "this system does not say how much memory is free; give the cache's size in GiB"
        ) from error
    sizes = {name: value for name, _, value in (line.partition(":") for line in lines)}
    of_machine = int(sizes["MemAvailable"].split()[0]) * 1024
    return max(0, min([of_machine, *_left_by_groups(root)]))


def _left_by_groups(root: Path) -> Iterator[int]:
    """List the bytes that are left in each control group around this process that has a limit."""
    memberships = root / "proc/self/cgroup"
    for line in memberships.read_text().splitlines() if memberships.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", _VERSION_2
        elif "memory" in controllers.split(","):
            top, names = root / "sys/fs/cgroup/memory", _VERSION_1
        else:
            continue
        group = Path(path.lstrip("/"))
        # In a container the path may not exist, because it is that of the host. The limit of the
        # container is then at the top.
        for folder in (group, *group.parents):
            yield from _left_by_group(top / folder, *names)


def _left_by_group(folder: Path, limit: str, usage: str, droppable: str) -> Iterator[int]:
    try:
        maximum = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except FileNotFoundError:
        return
    if maximum != "max":
        yield int(maximum) - used + int(stat[droppable])
