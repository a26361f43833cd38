"""Compile the kernels of grouped experts for GPUs that are not here; print what each needs as JSON.

A program of its own, because the tests set TRITON_INTERPRET, and then nothing is compiled.
"""

import json
import sys

from model.network.kernels import grouped_experts
from model.network.kernels.grouped_experts import Tiles, choose_tiles
from tests.model.network.kernels.resources import needs

TYPES = {"starts": "*i32", "order": "*i64", "local_ids": "*i64", "weights": "*fp32"}
INTEGERS = {"id_row": "i32", "id_column": "i32", "weight_row": "i32", "weight_column": "i32"}
PUBLISHED = {"K": 6, "D": 2048, "F": 1408, "E": 64, "E_PADDED": 64}


def compiled(kernel, capability, tiles: Tiles, columns):
    """Compile one kernel with these tiles; see `needs`."""
    constants = {**PUBLISHED, "ROWS": tiles.rows, "INNER": tiles.inner, "COLUMNS": columns}
    names = [name for name in kernel.arg_names if name not in constants]
    types = dict.fromkeys(names, "*bf16") | TYPES | INTEGERS
    aligned = [name for name in names if types[name].startswith("*")]
    options = {"num_warps": tiles.num_warps, "num_stages": tiles.num_stages}
    return needs(kernel, capability, types, constants, aligned, **options)


capability = int(sys.argv[1])
found = {"add": compiled(grouped_experts._add, capability, Tiles(1, 1, 1, 4, 3), 512)}
for rows_per_expert in (1, 24, 768):
    tiles = choose_tiles(rows_per_expert, 2)
    for kernel, columns in (("_gate_up", tiles.columns), ("_down", 2 * tiles.columns)):
        made = compiled(getattr(grouped_experts, kernel), capability, tiles, columns)
        found[f"{kernel[1:]} {tiles.rows}"] = made
sys.stdout.write(json.dumps(found))
