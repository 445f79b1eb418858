"""Use oneDNN for a model's linear layers when it answers on a CPU.

PyTorch multiplies float32 matrices with MKL. On an AMD processor with AVX-512, which MKL does not use there,
this took twice as long as with oneDNN. Without AVX-512 both took about the same; Intel's processors were not
measured (scripts/bench/README.md). In half precision PyTorch uses oneDNN itself where it can.
"""

from __future__ import annotations

import platform

import torch
from torch import nn

from llava.model.overrides import find_change


class OneDnnLinear(nn.Linear):
    """An `nn.Linear` that uses oneDNN in float32 on a CPU, while gradients and autocast are off."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) of `input`, (..., in_features)."""
        if (
            torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or not torch.backends.mkldnn.enabled
            or not all(_is_float32_on_cpu(tensor) for tensor in (input, self.weight))
        ):
            return super().forward(input)
        # What torch.compile calls on a CPU; the public aten.mkldnn_linear copies its input and output.
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self.weight, self.bias, "none", [], ""
        )
        return output


def use_onednn(model: nn.Module) -> None:
    """Make a model's linear layers on a CPU use oneDNN, on x86 processors and if PyTorch has it.

    A model that other code has changed stays as it is, because that code may depend on the layers' class.
    """
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not is_x86 or not hasattr(torch.ops.mkldnn, "_linear_pointwise") or find_change(model) is not None:
        return
    for layer in model.modules():
        if type(layer) is nn.Linear and layer.weight.device.type == "cpu":
            layer.__class__ = OneDnnLinear


def _is_float32_on_cpu(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"
