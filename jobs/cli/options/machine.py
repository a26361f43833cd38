"""Options for devices, copies of the model, ranks and threads."""

import argparse

from jobs.cli.options.values import count, positive, positive_or


def add_machine(group: argparse._ArgumentGroup) -> None:
    """Add the options for devices, copies of the model, ranks and threads."""
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: GPUs if the cluster has any, else CPUs",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="type of weights and computation; auto: as the weights are stored",
    )
    group.add_argument(
        "--groups",
        type=positive_or("auto"),
        metavar="N",
        help="copies of the model; default: auto, as many as the GPUs can hold, or one on CPUs",
    )
    group.add_argument(
        "--expert-parallel",
        type=positive_or("auto"),
        metavar="R",
        help="ranks that share the experts of one copy, one GPU each; default: auto, which is 1, "
        "or with --groups the GPUs divided by the copies",
    )
    group.add_argument(
        "--dispatch",
        choices=("auto", "all_to_all", "all_gather"),
        default="auto",
        help="how the ranks of a copy exchange the tokens of each layer",
    )
    group.add_argument(
        "--wire-dtype",
        choices=("auto", "bfloat16", "float8"),
        default="auto",
        help="type of tokens that ranks exchange; auto: unchanged; float8: one byte per number to "
        "the experts and bfloat16 back, for ranks with a slow network between them; any value but "
        "auto changes captions and is part of the recipe",
    )
    group.add_argument(
        "--placement",
        choices=("strict_pack", "pack", "spread"),
        default="strict_pack",
        help="where the ranks of a copy run: on one node, on as few as possible, on as many as "
        "possible",
    )
    group.add_argument(
        "--expert-placement",
        metavar="PARQUET",
        help="place experts by _expert_load.parquet of an earlier output, so that the ranks of a "
        "copy get equal work; default: equally many experts per rank, in their order",
    )
    group.add_argument(
        "--expert-copies",
        type=count,
        default=0,
        metavar="N",
        help="with --expert-placement: extra copies of the busiest experts on each rank, in each "
        "layer",
    )
    group.add_argument(
        "--threads",
        type=positive_or("auto"),
        metavar="N",
        help="threads of torch per rank on CPUs; default: auto, half of the CPUs divided by the "
        "ranks",
    )
    group.add_argument(
        "--batch-size",
        type=positive,
        default=32,
        metavar="N",
        help="captions that each rank generates at the same time",
    )
    cache = group.add_mutually_exclusive_group()
    cache.add_argument(
        "--cache-gib",
        type=float,
        default=4.0,
        metavar="G",
        help="KV cache of each rank, in GiB: memory for the tokens of prompts and captions",
    )
    cache.add_argument(
        "--cache-fraction",
        type=float,
        metavar="F",
        help="KV cache as a fraction of the memory that is free once the weights are loaded: on "
        "each rank's GPU, or on the machine of a single rank on CPUs",
    )
