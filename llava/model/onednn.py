"""Compute the linear layers of a model that answers on a CPU by oneDNN.

PyTorch multiplies float32 matrices by MKL, which on AMD's processors does not use AVX-512: the products of a
prompt took twice as long as oneDNN's (scripts/bench/README.md). In half precision PyTorch uses oneDNN itself.
"""

from __future__ import annotations

import platform

import torch
from torch import nn

from llava.model.overrides import find_change


class OneDnnLinear(nn.Linear):
    """An `nn.Linear` that computes by oneDNN what needs no gradient and is float32 on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) of `input`, (..., in_features)."""
        if torch.is_grad_enabled() or input.dtype != torch.float32 or input.device.type != "cpu":
            return super().forward(input)
        # What torch.compile calls on a CPU; the public aten.mkldnn_linear copies its input and output.
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self.weight, self.bias, "none", [], ""
        )
        return output


def use_onednn(model: nn.Module) -> None:
    """Let the linear layers that are on a CPU be oneDNN's where there is oneDNN.

    A model that other code has changed stays as it is: what is replaced may look at its layers.
    """
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not (is_x86 and torch.backends.mkldnn.is_available()) or find_change(model) is not None:
        return
    for layer in model.modules():
        if type(layer) is nn.Linear and layer.weight.device.type == "cpu":
            layer.__class__ = OneDnnLinear
