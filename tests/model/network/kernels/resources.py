"""Compile a kernel for a GPU that is not here, and say what it needs of one."""

import re
import subprocess
import tempfile

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel


def needs(kernel, capability, types, constants, aligned, **options):
    """Return bytes of stack (spilled), registers of a thread, and bytes of shared memory.

    `types` and `constants` are by name of an argument; `aligned` are those divisible by 16.
    """
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: "constexpr" if name in constants else types[name] for name in names},
        {(names.index(name),): constants[name] for name in names if name in constants},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    made = compile_kernel(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = (knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stack, registers = (re.search(rf"{name}:(\d+)", usage) for name in ("STACK", "REG"))
    assert stack is not None
    assert registers is not None
    return {
        "spilled": int(stack[1]),
        "registers": int(registers[1]),
        "shared": made.metadata.shared,
    }
