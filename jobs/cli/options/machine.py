"""Devices, copies of the model and threads."""

import argparse

from jobs.cli.options.values import count, positive, positive_or


def add_machine(group: argparse._ArgumentGroup) -> None:
    """Devices, copies of the model and threads."""
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: GPUs if the cluster has any",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="auto: as the weights are stored",
    )
    group.add_argument(
        "--groups",
        type=positive_or("auto"),
        metavar="N",
        help="copies of the model; default: auto, as many as the GPUs make, or one",
    )
    group.add_argument(
        "--expert-parallel",
        type=positive_or("auto"),
        metavar="R",
        help="ranks, one GPU each, that share the experts of a copy; default: auto, one, or what "
        "--groups leaves for each",
    )
    group.add_argument(
        "--dispatch",
        choices=("auto", "all_to_all", "all_gather"),
        default="auto",
        help="how tokens travel between the ranks of a copy",
    )
    group.add_argument(
        "--wire-dtype",
        choices=("auto", "bfloat16", "float8"),
        default="auto",
        help="of tokens while they travel: auto, as they are; float8, one byte a number on the way "
        "to the experts and bfloat16 back, where the network between ranks is the slow part; "
        "other than auto changes captions and is part of the recipe",
    )
    group.add_argument(
        "--placement",
        choices=("strict_pack", "pack", "spread"),
        default="strict_pack",
        help="of the ranks of a copy: on one node, on few, on many",
    )
    group.add_argument(
        "--expert-placement",
        metavar="PARQUET",
        help="_expert_load.parquet of an earlier output: experts are placed so that the ranks of a "
        "copy have equally much to do; default: equal shares in their order",
    )
    group.add_argument(
        "--expert-copies",
        type=count,
        default=0,
        metavar="N",
        help="with --expert-placement: hold so many more experts on each rank and in each layer, "
        "second and further copies of the busiest",
    )
    group.add_argument(
        "--threads",
        type=positive_or("auto"),
        metavar="N",
        help="of torch in each rank on CPUs; default: auto, an equal share of half of the CPUs",
    )
    group.add_argument(
        "--batch-size",
        type=positive,
        default=32,
        metavar="N",
        help="captions that each rank writes at the same time",
    )
    cache = group.add_mutually_exclusive_group()
    cache.add_argument(
        "--cache-gib",
        type=float,
        default=4.0,
        metavar="G",
        help="memory of each rank for the tokens of its prompts and captions",
    )
    cache.add_argument(
        "--cache-fraction",
        type=float,
        metavar="F",
        help="or this fraction of what is free once the weights are loaded: of each rank's GPU, or "
        "of the machine of a single rank on CPUs",
    )
