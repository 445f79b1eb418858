"""Linear layers and attention by oneDNN: where they are used, and that they compute what PyTorch's do."""

from __future__ import annotations

import copy
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from llava.infer.engine.engine import Engine
from llava.infer.engine.requests import Generation, ImageFile, Request
from llava.infer.jobs.prompting import prompt_of
from llava.model.builder import load_pretrained_model
from llava.model.onednn.attention import attend, attend_by_onednn
from llava.model.onednn.layers import OneDnnLinear, packed_weights, use_onednn
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


def random_heads(length: int, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries as a layer makes them, and keys and values as a cache keeps them."""
    torch.manual_seed(length)
    query = torch.randn(1, length, 4, 16).transpose(1, 2)
    keys, values = torch.randn(2, 3, 4 // groups, length + 9, 16)[:, 1:2, :, :length]
    return query, keys, values


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("length", "groups"), [(1, 1), (159, 2), (160, 1), (161, 4), (577, 1)])
@torch.inference_mode()
def test_attention_is_pytorchs_own(length: int, groups: int, is_causal: bool) -> None:
    query, keys, values = random_heads(length, groups)
    found = attend_by_onednn(query, keys, values, 0.3, is_causal=is_causal)
    wanted = nn.functional.scaled_dot_product_attention(
        query, keys, values, is_causal=is_causal, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("length", "groups"), [(63, 1), (64, 1), (40, 2)])
@pytest.mark.filterwarnings("ignore:TF32")
@torch.inference_mode()
def test_many_queries_are_multiplied_by_onednn_to_the_same_result(
    length: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, keys, values = random_heads(length, groups)
    hidden = torch.rand(1, 1, length, length) < 0.4
    hidden[..., 0] = False
    with torch.backends.mkldnn.flags(enabled=False):
        wanted = attend(query, keys, values, hidden, 0.3)
    used: list[tuple[int, ...]] = []

    def watched(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        used.append(left.shape)
        return left @ right.T

    torch.testing.assert_close(attend(query, keys, values, hidden, 0.3), wanted, rtol=0, atol=1e-5)
    monkeypatch.setattr("llava.model.onednn.attention.product", watched)
    attend(query, keys, values, hidden, 0.3)
    assert len(used) == (0 if length == 63 else 8 // groups)


@pytest.mark.filterwarnings("ignore:TF32")
def test_a_vision_tower_attends_by_onednn_to_the_same_features(
    plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, images = copy.deepcopy(plain), torch.randn(3, 3, 56, 56)
    use_onednn(quick)
    used: list[bool] = []

    def watched(*states: Any, is_causal: bool) -> torch.Tensor:
        used.append(is_causal)
        return attend_by_onednn(*states, is_causal=is_causal)

    monkeypatch.setattr("llava.model.onednn.layers.attend_by_onednn", watched)
    with torch.inference_mode():
        wanted = plain.encode_images(images)
        with torch.backends.mkldnn.flags(enabled=False):
            usual = quick.encode_images(images)
        assert not used
        found = quick.encode_images(images)
    assert len(used) > len(images)
    assert not any(used)
    for each in (usual, found):
        torch.testing.assert_close(each, wanted, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_packed_weights_compute_the_same_and_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 80), nn.Linear(80, 32, bias=False))
    use_onednn(model)
    inputs = [torch.randn(rows, 48) for rows in (1, 7, 300)]
    wanted = [model(each) for each in inputs]
    layer: Any = model[0]
    with packed_weights(model):
        assert layer.packed is not None
        for each, expected in zip(inputs, wanted, strict=True):
            torch.testing.assert_close(model(each), expected, rtol=0, atol=2e-5)
    assert layer.packed is None
    with pytest.raises(KeyboardInterrupt), packed_weights(model):
        raise KeyboardInterrupt
    assert layer.packed is None
    free = SimpleNamespace(available=4 * 4 * (48 * 80 + 80 * 32) - 1)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    with packed_weights(model):
        assert layer.packed is None


def test_an_engine_packs_weights_for_many_requests(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model(golden)
    first: Any = next(layer for layer in linear_layers(loaded.model))
    image = ImageFile(golden / "images/a_640x480.png")
    requests = [Request(prompt_of("vicuna_v1", f"{n}?", "<image>\n"), (image,)) for n in range(8)]
    engine = Engine(loaded, Generation(max_new_tokens=2))
    for count in (7, 8):
        answers = engine.answer(requests[:count])
        next(answers)
        assert (first.packed is not None) == (count == 8)
        answers.close()  # type: ignore[attr-defined]
        assert first.packed is None


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
