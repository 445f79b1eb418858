"""Where a model is put and in what precision: the caller's wishes, checked, as transformers takes them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_flash_attn_2_available

from llava.errors import SettingsError

logger = logging.getLogger(__name__)

# Small or sensitive: kept whole when the rest is quantised. transformers matches these from a name's start.
UNQUANTISED = ["model.mm_projector", "model.vision_tower", "lm_head"]


@dataclass(frozen=True, slots=True)
class Placement:
    """How weights are read. `settings` go to `from_pretrained`."""

    dtype: torch.dtype
    settings: dict[str, Any]

    @property
    def is_quantised(self) -> bool:
        """Whether weights are stored in 4 or 8 bits."""
        return self.settings.get("quantization_config") is not None


def plan_placement(
    *,
    device: str | None,
    device_map: Any,
    dtype: torch.dtype | str | None,
    load_8bit: bool,
    load_4bit: bool,
    use_flash_attn: bool,
) -> Placement:
    """Decide device, precision and quantisation.

    Without a wish it is cuda with float16 where there is one, else the CPU with float32, in which a CPU is
    both faster and exact.

    Raises:
        SettingsError: The device is not there, or two wishes exclude each other.
    """
    if load_8bit and load_4bit:
        raise SettingsError("load_8bit and load_4bit exclude each other: give one")
    device = _device(device, device_map)
    chosen = parse_dtype(dtype) or (torch.float32 if device == "cpu" else torch.float16)
    settings: dict[str, Any] = {
        "dtype": chosen,
        "device_map": device_map if device == "cuda" and device_map is not None else {"": device},
    }
    if load_4bit or load_8bit:
        if find_spec("bitsandbytes") is None:
            raise SettingsError("load_4bit and load_8bit need bitsandbytes: pip install 'llava[quant]'")
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=load_8bit,
            load_in_4bit=load_4bit,
            bnb_4bit_compute_dtype=chosen,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
            llm_int8_skip_modules=UNQUANTISED,
        )
    if use_flash_attn:
        if is_flash_attn_2_available():
            settings["attn_implementation"] = "flash_attention_2"
        else:
            logger.warning("flash-attn is not installed: PyTorch's own attention is used")
    return Placement(chosen, settings)


def avoid_unsupported_kernels(model: torch.nn.Module) -> None:
    """Keep a 4-bit model's odd-sized layers off bitsandbytes' packed CPU kernel, which asserts on their size.

    The kernel is taken on processors with AVX512-BF16 only; other layers and processors go the general way.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit) and (module.out_features % 32 or module.in_features % 64):
            module.support_avx512bf16_for_cpu = False


def _device(wanted: str | None, device_map: Any) -> str:
    """The device by name; a device_map that names one place wins over the default."""
    if wanted in (None, "auto"):
        whole = device_map.get("") if isinstance(device_map, dict) and len(device_map) == 1 else device_map
        if isinstance(whole, (str, torch.device)) and str(whole) not in ("auto", "balanced", "sequential"):
            wanted = str(whole)
        else:
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = str(wanted)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SettingsError(f"device {device} was asked for, but this machine shows no CUDA device: give cpu")
    return device


def parse_dtype(wanted: torch.dtype | str | None) -> torch.dtype | None:
    """A precision by name or as it is; None for no wish."""
    if wanted is None:
        return None
    found = getattr(torch, wanted, None) if isinstance(wanted, str) else wanted
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise SettingsError(f"dtype is {wanted!r}; there are float16, bfloat16 and float32")
    return found
