"""A small random checkpoint, and its processor; and what Triton's interpreter needs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from triton.runtime import interpreter

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


@pytest.fixture(autouse=True, scope="session")
def loops_of_kernels_may_end_at_a_loaded_number() -> Iterator[None]:
    """With numpy 2.4 the interpreter of Triton 3.6 cannot make a Python number of a loaded one."""
    original = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang_tensor", patched)
        yield
