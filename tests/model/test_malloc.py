import os
import subprocess
import sys

import pytest

from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.malloc import use_expandable_segments
from tests.conftest import ROOT

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
EXPANDABLE = "expandable_segments:True"

COUNT_FAULTS = """
import resource
import torch
from model.malloc import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
faults()
before = faults()
assert keep_freed_memory()
for _ in range(20):
    faults()
print(before, min(faults() for _ in range(5)))
"""


def test_a_large_tensor_finds_the_pages_of_those_before_it():
    # In a process of its own: the setting stays.
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert before > 1000
    assert after < before / 10


def settings():
    return tuple(os.environ.get(name) for name in ALLOCATOR)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_on_a_gpu_segments_expand(unset_allocator, device):
    use_expandable_segments(device)
    assert settings() == (EXPANDABLE, None)


@pytest.mark.parametrize("name", ALLOCATOR)
@pytest.mark.parametrize("value", ["max_split_size_mb:128", ""])
def test_settings_of_the_user_stay_as_they_are(unset_allocator, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    before = settings()
    use_expandable_segments("cuda")
    assert settings() == before


def test_on_a_cpu_nothing_is_set(unset_allocator, checkpoint):
    Engine.from_checkpoint(checkpoint, EngineConfig(device="cpu"))
    assert settings() == (None, None)


FIRST_USE_OF_CUDA = """
import os, sys
from pathlib import Path
import torch
from model.engine.config import EngineConfig
from model.engine.engine import Engine

def begin():
    print(os.environ.get("PYTORCH_ALLOC_CONF"), flush=True)
    os._exit(0)

torch.cuda.is_available = lambda: True
torch.cuda._lazy_init = begin
Engine.from_checkpoint(Path(sys.argv[1]), EngineConfig(device="cuda"))
"""


def test_an_engine_sets_it_before_torch_begins_to_use_the_gpu(unset_allocator, checkpoint):
    # In a process of its own: a test before this one may have used a GPU.
    done = subprocess.run(
        [sys.executable, "-c", FIRST_USE_OF_CUDA, checkpoint],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, EXPANDABLE), done.stderr
