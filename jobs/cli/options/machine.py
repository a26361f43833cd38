"""Options for devices, copies of the model, ranks and threads, and for how to run."""

import argparse

from jobs.cli.options.parser import add_options
from jobs.cli.options.values import count, number_or, positive, positive_or, share

_MACHINE = """
--device: auto: GPUs if the cluster has any, else CPUs
--dtype: type of weights and computation; auto: as the weights are stored, but float32 on CPUs
    without instructions for bfloat16, where memory allows
--groups N: copies of the model; default: auto, as many as the GPUs can hold, or one on CPUs
--expert-parallel R: ranks that share the experts of one copy, one GPU each; default: auto, which is
    1, or with --groups the GPUs divided by the copies
--dispatch: how the ranks of a copy exchange the tokens of each layer
--wire-dtype: type of tokens that ranks exchange; auto: unchanged; float8: one byte per number to
    the experts and bfloat16 back, for ranks with a slow network between them; any value but auto
    changes captions and is part of the recipe
--placement: where the ranks of a copy run: on one node, on as few as possible, on as many as
    possible
--expert-placement PARQUET: place experts by _expert_load.parquet of an earlier output, so that the
    ranks of a copy get equal work; default: equally many experts per rank, in their order
--expert-copies N: with --expert-placement: extra copies of the busiest experts on each rank, in
    each layer
--max-group-failures F: failures of copies that the run survives, for each copy and day, beside 16
    at once or 3 for each copy, whichever is more; a copy that fails 6 times in a row is set apart
    while others go on; the default is meant for machines that are taken away a few times a day
--threads N: threads of torch per rank on CPUs; default: auto, half of the CPUs divided by the ranks
--batch-size N: captions that each rank generates at the same time; default: auto, chosen for the
    card: 256 from 80 GB, 128 from 48, 64 from 24, else 32; 32 on CPUs
--max-step-tokens N: tokens that a rank computes in one step, at most; longer prompts take several
    steps; fewer take less memory
--max-vision-patches N: patches of 14 x 14 pixels that a rank encodes together, at most; a larger
    image is encoded alone; fewer take less memory
--no-cuda-graphs: launch every kernel of a step by itself; by default, steps on GPUs that only
    generate are replayed as CUDA graphs
"""
_CACHE = """
--cache-gib G: KV cache of each rank, in GiB: memory for the tokens of prompts and captions;
    default: auto, chosen for the card: what is left of 0.9 of it beside a worst-case step, which is
    computed at the start; 4 on CPUs
--cache-fraction F: KV cache as a fraction of the memory that is free once the weights are loaded:
    on each rank's GPU, or on the machine of a single rank on CPUs
"""
_RUN = """
--dry-run: print what the run would do (new, done and failed rows, changes of the recipe, part
    files, machines); start nothing and write nothing
--check-shards: compare all shards in the output with the input: rows that are missing, there twice
    or unknown; without --shard nothing else is done; with it, after the run, and only if this shard
    was the last one to finish
--inline: run everything in this process, without Ray, with one copy of the model: for small inputs,
    debuggers and tests; resumes and counts as any run does
--fail-if-errors SHARE: exit with status 3 if more than this share (0 to 1) of the rows that this
    run wrote have status error; 0 allows none
--retry-failed CODES: process rows with status error again and replace them; with codes, such as
    media_missing,media_unreadable, only these errors; with the word temporary only those that may
    pass by themselves, such as those of a server
--new-recipe: if the output was made with other settings, move its rows to its folder _old-<time>/
    and start again
--new-rows: if files of the input changed since the output was begun and rows have no --id-column:
    find out which rows are new by reading the changed files, and answer these; rows that the input
    does not have any more stay in the output
--config YAML: read options from a file (path or URI) whose keys are their names; the command line
    takes precedence; _run.yaml in an output directory repeats the run that wrote it
"""


def add_machine(group: argparse._ArgumentGroup) -> None:
    """Add the options for devices, copies of the model, ranks and threads."""
    add_options(
        group,
        _MACHINE,
        {
            "--device": {"choices": ("auto", "cpu", "cuda"), "default": "auto"},
            "--dtype": {"choices": ("auto", "float32", "bfloat16", "float16"), "default": "auto"},
            "--groups": {"type": positive_or("auto")},
            "--expert-parallel": {"type": positive_or("auto")},
            "--dispatch": {"choices": ("auto", "all_to_all", "all_gather"), "default": "auto"},
            "--wire-dtype": {"choices": ("auto", "bfloat16", "float8"), "default": "auto"},
            "--placement": {"choices": ("strict_pack", "pack", "spread"), "default": "strict_pack"},
            "--expert-copies": {"type": count, "default": 0},
            "--max-group-failures": {"type": float, "default": 4.0},
            "--threads": {"type": positive_or("auto")},
            "--batch-size": {"type": positive_or("auto")},
            "--max-step-tokens": {"type": positive, "default": 8192},
            "--max-vision-patches": {"type": positive, "default": 16384},
        },
    )
    cache = {"--cache-gib": {"type": number_or("auto")}, "--cache-fraction": {"type": float}}
    add_options(group.add_mutually_exclusive_group(), _CACHE, cache)


def add_run(group: argparse._ArgumentGroup) -> None:
    """Add the options for an existing output, for how to run, and for a file of options."""
    retry = {"nargs": "?", "const": "all"}
    add_options(group, _RUN, {"--fail-if-errors": {"type": share}, "--retry-failed": retry})
