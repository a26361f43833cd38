import subprocess
import sys

from tests.conftest import ROOT

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
