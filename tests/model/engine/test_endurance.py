"""Over thousands of sequences, answers are the same bytes again, and memory does not grow."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.inputs.processor import Processor
from tests.conftest import ROOT

NUM_SEQUENCES = 2000
SCHEMA = '{"type": "array", "items": {"enum": ["red", 5]}}'


def private_bytes() -> int:
    """Return the memory of this process without the pages of files."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]) * 1024


def answer(engine, processor, numbers):
    """Ask about a different picture for each number."""
    done = {}
    for number in numbers:
        picture = np.random.default_rng(number).integers(0, 256, (28, 28, 3), dtype=np.uint8)
        params = SamplingParams(
            max_tokens=1 + number % 3,
            temperature=1.0,
            seed=number,
            n=2 if number % 5 == 0 else 1,
            schema=SCHEMA if number % 4 == 0 else None,
            token_logprobs=number % 2 == 0,
        )
        engine.add(str(number), processor.prompt([picture, f"what is {number}?"]), params)
        if number % 64 == 63:
            while engine.has_work:
                done |= dict(engine.step())
    while engine.has_work:
        done |= dict(engine.step())
    return done


def print_growth(checkpoint):
    """Print by how many bytes this process grows over `NUM_SEQUENCES`."""
    processor = Processor.from_checkpoint(checkpoint)
    config = EngineConfig(max_batch_size=64, cache_gib=0.01, feature_cache_gib=0.001)
    engine = Engine.from_checkpoint(checkpoint, config)
    answer(engine, processor, range(1000))  # fills the cache, its features and torch's pools
    before = private_bytes()
    assert len(answer(engine, processor, range(1000, 1000 + NUM_SEQUENCES))) == NUM_SEQUENCES
    assert engine.pool.num_available == engine.pool.num_blocks
    print(private_bytes() - before)  # noqa: T201


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_sequences(checkpoint):
    # In a process of its own: in this one the tests before it still move memory.
    program = (
        f"from tests.model.engine.test_endurance import *; print_growth(Path({str(checkpoint)!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # 8 KiB a sequence: malloc's pools alone move by up to 13 MB from run to run.
    assert int(done.stdout) < 16 << 20


@pytest.mark.slow
def test_two_runs_give_the_same_answers_to_the_last_bit(checkpoint):
    processor = Processor.from_checkpoint(checkpoint)
    runs = [
        answer(
            Engine.from_checkpoint(checkpoint, EngineConfig(max_batch_size=16)),
            processor,
            range(100),
        )
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
