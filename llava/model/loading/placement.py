"""Choose a model's device, precision and quantisation, as arguments of `from_pretrained`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_flash_attn_2_available

from llava.errors import SettingsError

logger = logging.getLogger(__name__)

# Small or sensitive modules that are never quantised. transformers matches the start of a module's name.
UNQUANTISED = ["model.mm_projector", "model.vision_tower", "lm_head"]


DeviceMap = str | torch.device | Mapping[str, int | str | torch.device] | None  # as transformers takes it


@dataclass(frozen=True, slots=True)
class Placement:
    """Device, precision and quantisation of a model; `arguments` go to `from_pretrained`.

    With `maps_files`, weights stay in their mapped files until they change, which loads at once. Without, no
    file is mapped for longer than one of its weights is read, which takes the least memory.
    """

    dtype: torch.dtype
    arguments: dict[str, object]
    maps_files: bool = True

    @property
    def is_quantised(self) -> bool:
        """Whether weights are stored in 4 or 8 bits."""
        return self.arguments.get("quantization_config") is not None


def plan_placement(
    *,
    device: str | None,
    device_map: DeviceMap,
    dtype: torch.dtype | str | None,
    load_8bit: bool,
    load_4bit: bool,
    use_flash_attn: bool,
) -> Placement:
    """Decide device, precision and quantisation.

    The defaults are CUDA in float16 if there is a GPU, else the CPU in float32, which is exact and faster
    than float16 there.

    Raises:
        SettingsError: The device does not exist, or two arguments contradict each other.
    """
    if load_8bit and load_4bit:
        raise SettingsError(
            "load_8bit and load_4bit exclude each other: give one", code="contradicting-flags"
        )
    device = _choose_device(device, device_map)
    chosen = parse_dtype(dtype) or (torch.float32 if device == "cpu" else torch.float16)
    arguments: dict[str, object] = {
        "dtype": chosen,
        "device_map": device_map if device == "cuda" and device_map is not None else {"": device},
    }
    if load_4bit or load_8bit:
        if find_spec("bitsandbytes") is None:
            raise SettingsError(
                "load_4bit and load_8bit need bitsandbytes: pip install 'llava[quant]'",
                code="missing-package",
            )
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=load_8bit,
            load_in_4bit=load_4bit,
            bnb_4bit_compute_dtype=chosen,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type="nf4",
            llm_int8_skip_modules=UNQUANTISED,
        )
    if use_flash_attn:
        if is_flash_attn_2_available():
            arguments["attn_implementation"] = "flash_attention_2"
        else:
            logger.warning("flash-attn is not installed: PyTorch's own attention is used")
    return Placement(chosen, arguments)


def plan_rewriting(dtype: torch.dtype | str, device: str = "cpu") -> Placement:
    """Plan to load a checkpoint that is to be written again, not quantised, in little memory.

    Raises:
        SettingsError: The device does not exist.
    """
    placement = plan_placement(
        device=device, device_map="auto", dtype=dtype, load_8bit=False, load_4bit=False, use_flash_attn=False
    )
    return replace(placement, maps_files=False)


def keep_on_one_gpu(placement: Placement, weights: int) -> None:
    """Replace the device map `auto` by one GPU where a model fits it; `auto` spreads it over all.

    Beside the weights, a quarter of their size and 2 GiB are left for answering.

    Args:
        placement: Its device map is changed.
        weights: The size of the weights in memory, in bytes.
    """
    if placement.arguments["device_map"] != "auto":
        return
    for index in range(torch.cuda.device_count()):
        free, _ = torch.cuda.mem_get_info(index)
        if 1.25 * weights + 2 * 2**30 <= free:
            placement.arguments["device_map"] = {"": f"cuda:{index}"}
            return


def avoid_slow_kernels() -> None:
    """Keep PyTorch's attention from cuDNN, which builds a plan for every new shape, and here most are new.

    A plan takes up to half a second (modelscope/FunASR issue 3704). For some lengths of masked batches its
    gradients are NaN (pytorch/pytorch issue 196678).
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def avoid_unsupported_kernels(model: torch.nn.Module) -> None:
    """Keep bitsandbytes' packed CPU kernel from 4-bit layers whose size it does not support.

    The kernel fails on them with an assertion. bitsandbytes uses it only on processors with AVX512-BF16.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit) and (module.out_features % 32 or module.in_features % 64):
            module.support_avx512bf16_for_cpu = False


def _choose_device(wanted: str | None, device_map: DeviceMap) -> str:
    """Return the device's name. A device_map that names a single device wins over the default."""
    if wanted in (None, "auto"):
        single: object = device_map
        if isinstance(device_map, Mapping):
            single = device_map.get("") if len(device_map) == 1 else None
        if isinstance(single, (str, torch.device)) and str(single) not in ("auto", "balanced", "sequential"):
            wanted = str(single)
        else:
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = str(wanted)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SettingsError(
            f"device {device} was asked for, but this machine has no CUDA device: give cpu",
            code="missing-gpu",
        )
    return device


def parse_dtype(wanted: torch.dtype | str | None) -> torch.dtype | None:
    """Return the precision given by name or as a dtype; None stays None."""
    if wanted is None:
        return None
    found = getattr(torch, wanted, None) if isinstance(wanted, str) else wanted
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise SettingsError(
            f"dtype is {wanted!r}; there are float16, bfloat16 and float32", code="unknown-dtype"
        )
    return found
