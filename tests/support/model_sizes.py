"""The memory footprint of LLaVA-1.5-7B with LoRA, for tests of the memory plan."""

from __future__ import annotations

from llava.train.planning.footprint import Footprint

GIB = 2**30


# LLaVA-1.5-7B with LoRA r=128 in bf16: 7.06 G weights and 0.34 G that are trained in fp32.
BIG = Footprint(
    frozen=14e9,
    trained=1.36e9,
    trained_count=340_000_000,
    largest_trained=67e6,  # the projector's second layer
    weight_size=2,
    layers=32,
    layer_fixed=20e6,
    layer_position=240e3,
    layer_input=8192.0,
    outside=60e3,
    logit=32000 * 14.0,
)
