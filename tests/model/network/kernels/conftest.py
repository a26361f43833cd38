"""The interpreter of the Triton that torch 2.11 asks for, with the numpy of today."""

import pytest
import triton
from packaging.version import Version
from triton.runtime import interpreter


@pytest.fixture(autouse=True)
def numbers_of_a_kernel_are_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `range` take what a kernel has computed, as Triton 3.7 does.

    Before, the interpreter makes an int of an array of one number, which numpy 2.4 refuses. A
    compiled kernel has no such arrays.
    """
    if Version(triton.__version__) >= Version("3.7"):
        return
    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_and_mend)
