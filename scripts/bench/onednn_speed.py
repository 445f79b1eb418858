"""Measure oneDNN's linear layers and attention against PyTorch's, one layer at a time, on the same inputs.

OMP_NUM_THREADS=1 python scripts/bench/onednn_speed.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from llava.command import run
from llava.infer.engine.load import keep_freed_memory
from llava.model.onednn.attention import attend, attend_by_onednn
from llava.model.onednn.product import HAS_ONEDNN, pack, product

WIDTHS = ((512, 1408), (4096, 11008))  # of the bench's small model, and of a 7B
ROWS = (1, 32, 640)
ROUNDS = 5


def seconds(work: Callable[[], object]) -> float:
    """Return the median time of a call, after one that is not counted."""
    work()
    spent = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent)


def print_row(name: str, pytorchs: float, ours: float) -> None:
    print(f"| {name} | {1000 * pytorchs:.2f} | {1000 * ours:.2f} | {pytorchs / ours:.2f} |", flush=True)


def compare_linear_layers() -> None:
    for width, inner in WIDTHS:
        # As many layers as do not fit into the processor's cache, as in a model.
        weights = [torch.randn(inner, width) for _ in range(-(-(2**27) // (4 * width * inner)))]
        packed = [pack(weight) for weight in weights]
        for rows in ROWS:
            inputs = torch.randn(rows, width)
            plain, quick, quicker = (
                seconds(lambda: [multiply(inputs, weight) for weight in each]) / len(each)  # noqa: B023
                for multiply, each in ((linear, weights), (product, weights), (product, packed))
            )
            print_row(f"linear {width} to {inner}, {rows} rows", plain, quick)
            print_row(f"linear {width} to {inner}, {rows} rows, packed", plain, quicker)


def compare_attention() -> None:
    for heads, features, length, is_causal in (
        *((8, 64, 640, True), (32, 128, 640, True)),
        *((4, 64, 577, False), (16, 64, 577, False)),
    ):
        query, keys, values = torch.randn(3, 1, heads, length, features)
        scaling = features**-0.5
        print_row(
            f"{'a prefix' if is_causal else 'an image'}, {heads} heads of {features}, {length} positions",
            seconds(lambda: scaled_dot_product_attention(query, keys, values, is_causal=is_causal)),  # noqa: B023
            seconds(lambda: attend_by_onednn(query, keys, values, scaling, is_causal=is_causal)),  # noqa: B023
        )
    for rows, queries in ((1, 320), (32, 10), (32, 1)):
        query = torch.randn(rows, 8, queries, 64)
        keys, values = torch.randn(2, rows, 8, 640, 64)
        print_row(
            f"{rows} prefixes of 640, {queries} positions after each, 8 heads of 64",
            seconds(lambda: scaled_dot_product_attention(query, keys, values)),  # noqa: B023
            seconds(lambda: attend(query, keys, values, None, 0.125)),  # noqa: B023
        )


@torch.inference_mode()
def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    if not HAS_ONEDNN:
        print("no oneDNN here: PyTorch's own layers are used")
        return
    keep_freed_memory()
    torch.manual_seed(0)
    print("| layer | PyTorch, ms | here, ms | ratio |\n| --- | --- | --- | --- |")
    compare_linear_layers()
    compare_attention()


if __name__ == "__main__":
    run(main)
