"""Makes the demo's data: images, base mix, engine records, held-out questions, laid out like playground/data.

    python playground/demo/generate.py --root playground/demo/work/data --seed 0

The same arguments give the same bytes. README.md beside this file describes the world.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tinyworld.layouts import (
    KNOWN,
    WEAK,
    write_base,
    write_captions,
    write_engine,
    write_round_images,
    write_seed_bench,
)
from tinyworld.questions import TYPES

from llava.command import run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", type=Path, required=True, help="the folder that takes the place of playground/data")
    add("--seed", type=int, default=0, help="another seed, other images (default 0)")
    add("--base", type=int, default=1000, help="samples of the base mix")
    add(
        "--base-types",
        type=_types,
        default=KNOWN + WEAK,
        help=f"their types in turn (default {_joined(KNOWN + WEAK)})",
    )
    add("--engine", type=int, default=1500, help="engine records")
    add(
        "--engine-types",
        type=_types,
        default=WEAK,
        help=f"their types in turn, or all (default {_joined(WEAK)})",
    )
    add("--heldout", type=int, default=250, help="held-out images, with a question of each type")
    add("--heldout-types", type=_types, default=_types("all"), help="these types (default all)")
    add("--rounds", type=int, default=0, help="images for data-engine rounds, with what is in them")
    add("--captions", type=int, default=0, help="captions for stage 1 (the recipe makes some)")
    arguments = parser.parse_args()
    root, seed = arguments.root, arguments.seed
    if arguments.captions:
        write_captions(root, seed, arguments.captions)
    if arguments.base:
        write_base(root, seed, arguments.base, arguments.base_types)
    if arguments.engine:
        write_engine(root, seed, arguments.engine, arguments.engine_types)
    if arguments.heldout:
        write_seed_bench(root, seed, arguments.heldout, arguments.heldout_types)
    if arguments.rounds:
        write_round_images(root, seed, arguments.rounds)


def _types(text: str) -> tuple[int, ...]:
    """Types from "5,7,9" or "all"."""
    if text == "all":
        return tuple(TYPES.values())
    types = tuple(int(part) for part in text.split(","))
    if unknown := set(types) - set(TYPES.values()):
        raise argparse.ArgumentTypeError(f"no type {_joined(sorted(unknown))}; types are 1 to 9")
    return types


def _joined(types: tuple[int, ...] | list[int]) -> str:
    return ",".join(map(str, types))


if __name__ == "__main__":
    run(main)
