"""The arithmetic of training: what operations a sample needs, and how many a device could do a second.

Their quotient is the model FLOPs utilisation. Counted is what the result needs: matrix products of forward
and backward at true lengths, two operations for a multiplication and an addition. Not counted is what a
recipe adds (padding, recomputed activations, attention between samples of one row, black images that stand
for none), and what is no matrix product.

Rule: PaLM (arXiv 2204.02311), appendix B, where a position attends to all of its sample, later ones too. A
frozen weight takes two of the three products: forward and the gradient of its input, not its own gradient.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Dense half-precision rates with fp32 sums, by words of the name the driver gives; the first match counts.
# Source: NVIDIA's data sheets, its whitepapers for GeForce; half of a figure "with sparsity".
PEAK_RATES: dict[str, float] = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "RTX A6000": 154.8e12,
    "RTX 6000 Ada": 364e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}
# Parts of a card, and other cards of the same number.
_SLOWER = {"MIG", "Laptop", "D"}
_MEASURING_S = 0.2


@dataclass(frozen=True, slots=True)
class TrainingFlops:
    """Operations of one forward and backward pass, by what they grow with.

    Attributes:
        position: Of a sample, its image's positions included; without attention and logits.
        pair: Of two positions of a sample: its length squared is how many it has.
        logit: Of a position whose logits are made.
        image: Vision tower (forward only) and projector.
    """

    position: float
    pair: float
    logit: float
    image: float

    def of(self, lengths: Iterable[int], *, logits: int, images: int) -> float:
        """Operations of training on samples once.

        Args:
            lengths: Positions of each sample, its image's included, padding not.
            logits: At how many positions logits are needed: the supervised ones, or all of them.
            images: Images of the samples, without black ones that stand for none.
        """
        positions = pairs = 0
        for length in lengths:
            positions += length
            pairs += length**2
        return self.position * positions + self.pair * pairs + self.logit * logits + self.image * images


def training_flops(model: Any) -> TrainingFlops:
    """What training `model` costs, as it is frozen, adapted and quantised now.

    Args:
        model: A LLaVA or LLaMA model, perhaps in PEFT's wrapper, not in DDP's or DeepSpeed's. Weights are not
            looked at: they may be on the meta device, or in parts.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config
    reaches_layers = any(each.requires_grad for each in base.model.parameters())
    width = config.num_attention_heads * config.head_dim
    return TrainingFlops(
        position=_linears(base.model.layers, reaches_layers),
        # Queries by keys, and weights by values; the backward pass has two products for each.
        pair=config.num_hidden_layers * 2 * 2 * width * (3 if reaches_layers else 1),
        logit=_linears(base.lm_head, reaches_layers),
        image=_image_flops(base),
    )


def _linears(module: nn.Module, passes_gradient: bool) -> float:
    """Operations of all linear layers inside `module` for one position."""
    layers = [each for each in module.modules() if isinstance(each, nn.Linear)]
    return sum(_linear(each, passes_gradient) for each in layers)


def _linear(layer: nn.Linear, passes_gradient: bool) -> float:
    products = 1 + passes_gradient + layer.weight.requires_grad
    return 2.0 * layer.in_features * layer.out_features * products


def _image_flops(base: Any) -> float:
    tower = base.get_vision_tower() if hasattr(base, "get_vision_tower") else None
    if tower is None:
        return 0.0
    config, patches = tower.config, tower.num_patches
    seen, width = patches + 1, config.hidden_size  # the class token too
    embedding = 2 * config.num_channels * config.patch_size**2 * width * patches
    linears = 2 * (4 * width**2 + 2 * width * config.intermediate_size) * seen
    attention = 2 * 2 * width * seen**2
    features = patches if tower.select_feature == "patch" else seen
    layers = [each for each in base.get_model().mm_projector.modules() if isinstance(each, nn.Linear)]
    # Nothing before the projector is trained, so its first layer passes no gradient on.
    projector = sum(
        _linear(each, place > 0 and each.weight.requires_grad) for place, each in enumerate(layers)
    )
    return embedding + tower.depth * (linears + attention) + projector * features


def peak_rate(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Operations a second `device` can do at most, and where the figure is from.

    A known GPU's is the data sheet's for half precision. Of all else (a CPU, single precision, an unknown
    card) it is the rate that large matrix products reach, which takes a moment.
    """
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        name = torch.cuda.get_device_name(device)
        rate = known_rate(name)
        if rate is not None:
            return rate, f"data sheet of {name}"
    return measured_rate(device, dtype), "measured by matrix products"


def known_rate(name: str) -> float | None:
    """The data sheet's dense half-precision rate of a GPU, by the name its driver gives; None if unknown."""
    words = set(name.replace("-", " ").split())
    if words & _SLOWER:
        return None
    return next((rate for card, rate in PEAK_RATES.items() if words.issuperset(card.split())), None)


def measured_rate(device: torch.device, dtype: torch.dtype, *, size: int | None = None) -> float:
    """Operations a second in products of two `size` x `size` matrices: the best of five, fewer if slow.

    Args:
        device: Where; a CPU computes with as many threads as torch has.
        dtype: Of both factors and the product.
        size: 8192 on a GPU and 512 on a CPU if None: enough to keep it busy, done in a moment.
    """
    size = size or (512 if device.type == "cpu" else 8192)
    # From a generator of its own: this may be called amid a run, whose dropout goes on from the global one.
    draws = torch.Generator(device).manual_seed(0)
    one, other = (torch.randn(size, size, generator=draws, device=device, dtype=dtype) for _ in range(2))
    (one[:64, :64] @ other[:64, :64]).sum().item()  # the first product ever loads libraries
    seconds: list[float] = []
    # A CPU without instructions for bfloat16 takes thirty times as long as for float32.
    while len(seconds) < 5 and sum(seconds) < _MEASURING_S:
        start = time.perf_counter()
        product = one @ other
        product[0, 0].item()  # a GPU is waited for
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
