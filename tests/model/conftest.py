"""A small random checkpoint, and its processor."""

from pathlib import Path

import pytest

from model.inputs.processor import Processor
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(directory)
    return directory


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Processor:
    return Processor.from_checkpoint(checkpoint)
