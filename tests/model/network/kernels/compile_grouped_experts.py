"""Compile the kernels of grouped experts for GPUs that are not here; print what each needs as JSON.

A program of its own, because the tests set TRITON_INTERPRET, and then nothing is compiled.
"""

import json
import re
import subprocess
import sys
import tempfile

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

from model.network.kernels import grouped_experts
from model.network.kernels.grouped_experts import Tiles, choose_tiles

TYPES = {"starts": "*i32", "order": "*i64", "local_ids": "*i64", "weights": "*fp32"}
INTEGERS = {"id_row": "i32", "id_column": "i32", "weight_row": "i32", "weight_column": "i32"}
PUBLISHED = {"K": 6, "D": 2048, "F": 1408, "E": 64, "E_PADDED": 64}


def compiled(kernel, capability, tiles: Tiles, columns):
    """Compile one kernel: bytes of stack, registers of a thread, bytes of shared memory."""
    values = {**PUBLISHED, "ROWS": tiles.rows, "INNER": tiles.inner, "COLUMNS": columns}
    names = kernel.arg_names
    constants = {name: values[name] for name in names if name in values}
    types = {**TYPES, **INTEGERS, **dict.fromkeys(constants, "constexpr")}
    pointers = [name for name in names if types.get(name, "*").startswith("*")]
    source = ASTSource(
        kernel,
        {name: types.get(name, "*bf16") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in pointers},
    )
    made = compile_kernel(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tiles.num_warps, "num_stages": tiles.num_stages},
    )
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


capability = int(sys.argv[1])
found = {"add": compiled(grouped_experts._add, capability, Tiles(1, 1, 1, 4, 3), 512)}
for rows_per_expert in (1, 24, 768):
    tiles = choose_tiles(rows_per_expert, 2)
    for kernel, columns in (("_gate_up", tiles.columns), ("_down", 2 * tiles.columns)):
        made = compiled(getattr(grouped_experts, kernel), capability, tiles, columns)
        found[f"{kernel[1:]} {tiles.rows}"] = made
sys.stdout.write(json.dumps(found))
