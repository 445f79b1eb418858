"""Linear layers of oneDNN: where they are used, and that they compute what PyTorch's own compute."""

from __future__ import annotations

import copy
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llava.model.builder import load_pretrained_model
from llava.model.onednn import OneDnnLinear, use_onednn
from support import tiny_checkpoints as tiny
from support.tiny_model import tiny_model

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available(),
    reason="needs oneDNN on an x86 processor",
)


def linear_layers(model: nn.Module) -> list[nn.Linear]:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


@pytest.fixture
def plain(golden: Path) -> Any:
    """The golden model as a library's user loads it."""
    return load_pretrained_model(
        golden / tiny.PROJECTOR, golden / tiny.LANGUAGE, device="cpu", dtype="float32"
    )[1]


def test_all_layers_of_a_model_that_answers_are_onednns(golden: Path, plain: Any) -> None:
    answering = linear_layers(tiny_model(golden).model)
    assert len(answering) == len(linear_layers(plain)) > 20
    assert {type(layer) for layer in answering} == {OneDnnLinear}
    assert OneDnnLinear not in {type(layer) for layer in linear_layers(plain)}


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (0, 48), (1, 48), (2, 31, 48), (1, 640, 48)])
@torch.inference_mode()
def test_a_layer_computes_what_pytorchs_own_computes(shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 80, bias=has_bias)
    inputs = torch.randn(shape)
    strided = torch.randn(*shape[:-1], 96)[..., ::2]
    wanted = layer(inputs), layer(strided)
    holder = nn.Sequential(layer)
    use_onednn(holder)
    assert type(holder[0]) is OneDnnLinear
    for found, expected in zip((layer(inputs), layer(strided)), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_what_needs_gradients_or_another_precision_is_pytorchs_own() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(8, 4), torch.randn(3, 8)
    layer(inputs).sum().backward()
    assert layer.weight.grad is not None
    wanted = layer.weight.grad.clone()
    use_onednn(layer)
    layer.zero_grad()
    layer(inputs).sum().backward()
    assert torch.equal(layer.weight.grad, wanted)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    with torch.inference_mode():
        assert half(inputs.bfloat16()).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(inputs).dtype == torch.bfloat16
        with pytest.raises(RuntimeError):  # nn.Linear's own: a float32 input, other weights
            half(inputs)


@pytest.mark.filterwarnings("ignore:TF32")
def test_a_user_can_turn_onednn_off(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, inputs = nn.Linear(8, 4), torch.randn(3, 8)
    use_onednn(layer)
    seen: list[torch.Tensor] = []
    usual = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, input: seen.append(input) or usual(self, input))
    with torch.inference_mode():
        layer(inputs)
        assert not seen
        with torch.backends.mkldnn.flags(enabled=False):
            layer(inputs)
    assert len(seen) == 1


def test_a_model_that_other_code_has_changed_stays_as_it_is(plain: Any) -> None:
    changed = copy.deepcopy(plain)
    changed.get_model().mm_projector.register_forward_hook(lambda module, inputs, output: output)
    use_onednn(changed)
    assert OneDnnLinear not in {type(layer) for layer in linear_layers(changed)}
    use_onednn(plain)
    assert {type(layer) for layer in linear_layers(plain)} == {OneDnnLinear}
