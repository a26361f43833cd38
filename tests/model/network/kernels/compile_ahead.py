"""Compile the kernels of latent attention for GPUs that are not here; print their needs as JSON.

A program of its own, because the tests set TRITON_INTERPRET, and then nothing is compiled.
"""

import json
import sys

from model.network.kernels import latent_decode, latent_write
from tests.model.network.kernels.resources import needs

NUMBERS = ("query", "kv", "weight", "cos", "sin", "cache", "joined", "turned", "latent_kv")
POINTERS = {"tables": "*i32", "rows": "*i32", "lens": "*i32", "slots": "*i64"}
SCALARS = {"scale": "fp32", "eps": "fp32"}
TYPES = {**POINTERS, **SCALARS, "outputs": "*fp32", "lses": "*fp32"}
UNALIGNED = (*POINTERS, *SCALARS, "cos", "sin", "table_stride")
TILE, STAGES = latent_decode.TILES[2]
PUBLISHED = {"H": 16, "C": 512, "R": 64, "TILE": TILE, "SPLITS": 8, "BLOCK": 16, "HEADS": 16}
TILES = {"C_TILE": 512, "R_TILE": 64, "H_TILE": 16, "NOPE_TILE": 128, "HALF_TILE": 32}
CONSTANTS = {**PUBLISHED, **TILES, "CHUNK": 512, "NOPE": 128, "HALF": 32}


def compiled(kernel, capability, dtype, **options):
    """Compile one kernel for the published widths; see `needs`."""
    names = kernel.arg_names
    types = dict.fromkeys(names, "i32") | TYPES | dict.fromkeys(NUMBERS, f"*{dtype}")
    aligned = [name for name in names if name not in CONSTANTS and name not in UNALIGNED]
    return needs(kernel, capability, types, CONSTANTS, aligned, num_warps=4, **options)


capability = int(sys.argv[1])
split = compiled(latent_decode._attend_split, capability, "bf16", num_stages=STAGES)
join = compiled(latent_decode._join_splits, capability, "bf16")
write = compiled(latent_write._rotate_and_write, capability, "bf16")
sys.stdout.write(json.dumps({"split": split, "join": join, "write": write}))
