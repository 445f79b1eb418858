"""Count the operations that training needs, and the peak rate of a device.

The two give the model FLOPs utilisation (MFU). Only matrix products that the result needs are counted:
forward and backward passes at true lengths, with two operations for each multiply-add. What a recipe adds is
not counted: padding, recomputed activations, attention between samples of one row, and blank placeholder
images.

Source: PaLM (arXiv 2204.02311), appendix B, which counts attention to all positions of the sample, later
ones included. A frozen weight needs two of the three products: the forward pass and its input's gradient.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

# Dense half-precision rates with fp32 accumulation, by words of the device name; the first match wins.
# Source: NVIDIA's data sheets and, for GeForce, its whitepapers; figures "with sparsity" are halved.
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
# GiB of memory of the cards of which there is one size, or the larger size where there are two.
CARD_MEMORY: dict[str, int] = {
    **{"B200": 180, "GH200": 96, "H200 NVL": 141, "H200": 141, "H100 PCIe": 80, "H100 NVL": 94, "H100": 80},
    **{"H800": 80, "A100": 80, "A800": 80, "L40S": 48, "L40": 48, "L4": 24, "A40": 48, "A10": 24},
    **{"RTX A6000": 48, "RTX 6000 Ada": 48, "RTX 4090": 24, "RTX 3090": 24, "V100": 32, "T4": 16},
}
# Words that mark a slice of a card, or a slower card of the same number.
_SLOWER = {"MIG", "Laptop", "D"}
_MEASURING_S = 0.2


@dataclass(frozen=True, slots=True)
class TrainingFlops:
    """Operations of one forward and backward pass, by what they scale with.

    Attributes:
        position: Operations per position, image positions included; without attention and logits.
        pair: Operations per pair of positions in a sample, of which there are its length squared.
        logit: Operations per position whose logits are computed.
        image: Operations per image: vision tower (forward only) and projector.
    """

    position: float
    pair: float
    logit: float
    image: float

    def of(self, lengths: Iterable[int], *, logits: int, images: int) -> float:
        """Return the operations of training on the samples once.

        Args:
            lengths: Positions of each sample, with its image and without padding.
            logits: Number of positions whose logits are needed: the supervised ones, or all.
            images: Number of images, without blank placeholders.
        """
        positions = pairs = 0
        for length in lengths:
            positions += length
            pairs += length**2
        return self.position * positions + self.pair * pairs + self.logit * logits + self.image * images


def training_flops(model: PreTrainedModel) -> TrainingFlops:
    """Return what training `model` costs with its current frozen, adapted and quantised weights.

    Args:
        model: A LLaVA or LLaMA model, with or without PEFT's wrapper, but not wrapped by DDP or DeepSpeed.
            The values of weights are not read: they may be sharded or on the meta device.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config
    trains_layers = any(parameter.requires_grad for parameter in base.model.parameters())
    width = config.num_attention_heads * config.head_dim
    return TrainingFlops(
        position=_linears(base.model.layers, trains_layers),
        # Queries by keys and weights by values; the backward pass needs two products for each of these.
        pair=config.num_hidden_layers * 2 * 2 * width * (3 if trains_layers else 1),
        logit=_linears(base.lm_head, trains_layers),
        image=_image_flops(base),
    )


def _linear_layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


def _linears(module: nn.Module, passes_gradient: bool) -> float:
    """Return the operations of all linear layers inside `module` for one position."""
    return sum(_linear(layer, passes_gradient) for layer in _linear_layers(module))


def _linear(layer: nn.Linear, passes_gradient: bool) -> float:
    products = 1 + passes_gradient + layer.weight.requires_grad
    return 2.0 * layer.in_features * layer.out_features * products


def _image_flops(base: PreTrainedModel) -> float:
    tower = base.get_vision_tower() if hasattr(base, "get_vision_tower") else None
    if tower is None:
        return 0.0
    config, patches = tower.config, tower.num_patches
    length, width = patches + 1, config.hidden_size  # with the class token
    embedding = 2 * config.num_channels * config.patch_size**2 * width * patches
    linears = 2 * (4 * width**2 + 2 * width * config.intermediate_size) * length
    attention = 2 * 2 * width * length**2
    features = patches if tower.select_feature == "patch" else length
    # Nothing before the projector is trained, so its first layer needs no gradient of its input.
    projector = sum(
        _linear(layer, index > 0 and layer.weight.requires_grad)
        for index, layer in enumerate(_linear_layers(base.get_model().mm_projector))
    )
    return embedding + tower.depth * (linears + attention) + projector * features


def peak_rate(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Return the most operations a second that `device` can do, and the source of the figure.

    For half precision on a known GPU it is the data sheet's rate. Otherwise (a CPU, single precision, an
    unknown card) it is measured with large matrix products, which takes a moment.
    """
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        name = torch.cuda.get_device_name(device)
        rate = known_rate(name)
        if rate is not None:
            return rate, f"data sheet of {name}"
    return measured_rate(device, dtype), "measured by matrix products"


def known_rate(name: str) -> float | None:
    """Return a GPU's dense half-precision rate by its driver's device name; None if unknown."""
    words = set(name.replace("-", " ").split())
    if words & _SLOWER:
        return None
    return next((rate for card, rate in PEAK_RATES.items() if words.issuperset(card.split())), None)


def measured_rate(device: torch.device, dtype: torch.dtype, *, size: int | None = None) -> float:
    """Measure the operations a second of matrix products: the best of at most five.

    Args:
        device: Where to compute; a CPU uses all of torch's threads.
        dtype: Precision of both factors and of the product.
        size: Rows and columns of each factor; if None, 8192 on a GPU and 512 on a CPU.
    """
    size = size or (512 if device.type == "cpu" else 8192)
    # A separate generator, so that a run's dropout, which draws from the global one, is unchanged.
    generator = torch.Generator(device).manual_seed(0)
    one, other = (torch.randn(size, size, generator=generator, device=device, dtype=dtype) for _ in range(2))
    (one[:64, :64] @ other[:64, :64]).sum().item()  # the first product loads libraries
    seconds: list[float] = []
    # A CPU without bfloat16 instructions takes thirty times as long as for float32, hence the time limit.
    while len(seconds) < 5 and sum(seconds) < _MEASURING_S:
        start = time.perf_counter()
        product = one @ other
        product[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
