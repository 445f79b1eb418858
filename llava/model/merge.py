"""An adapter merged into its base for good, and proved to answer as before; a model without its tower."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from llava.errors import CheckpointError
from llava.model import lora
from llava.model.builder import assemble_model, load_pretrained_model, load_tower, read_tokenizer
from llava.model.loading.locate import find_folder
from llava.model.loading.placement import plan_placement
from llava.model.loading.source import Source, find_source

logger = logging.getLogger(__name__)

# How far merging may move a logit, as a part of the largest one: the precision's rounding and some room.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_PROBE_LENGTH = 8


def merge_lora(
    model_path: str, model_base: str | None, save_path: Path, *, dtype: str = "float16", device: str = "cpu"
) -> None:
    """Write `model_path`'s adapter merged into its base, with the vision tower, as a whole model.

    The logits of a fixed prompt are compared before merging, after it, and after reading the result back.

    Args:
        model_path: The adapter.
        model_base: Its base; what the adapter names if None.
        save_path: A folder that is not there yet, or empty.
        dtype: What is computed with and written.
        device: Where; a CPU will do.

    Raises:
        CheckpointError: A part is missing or damaged, `save_path` is taken, or the results differ.
    """
    source = find_source(model_path, model_base)
    if source.kind != "adapter":
        raise CheckpointError(f"{source.folder}: holds no adapter, so there is nothing to merge")
    with _new_folder(save_path) as temporary:
        tokenizer = read_tokenizer(source)
        placement = _placement(dtype, device)
        wrapped = assemble_model(source, placement, tokenizer)
        if source.is_multimodal:  # before the work, so that a missing tower costs little
            load_tower(wrapped.get_base_model(), source, placement.dtype)
        before = _probe(wrapped)
        model = lora.merge_adapter(wrapped)
        after = _probe(model)
        _require_same(before, after, placement.dtype, "merging")
        _name_tower_from_anywhere(model.config, source)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(str(temporary))
        del wrapped, model  # two models of this size may not fit

        again = load_pretrained_model(temporary, device=device, dtype=dtype)[1]
        _require_same(after, _probe(again), torch.float32, "writing and reading back")
    logger.info(f"{save_path}: merged; logits of the probe agree")


def consolidate(src: str, dst: Path, *, dtype: str = "float16") -> None:
    """Write a whole model anew without its vision tower, which is read from `mm_vision_tower` anyway.

    Raises:
        CheckpointError: `src` is not a whole model, or `dst` is taken.
    """
    source = find_source(src, None)
    if source.kind != "full":
        raise CheckpointError(f"{source.folder}: holds no whole model; merge an adapter instead")
    with _new_folder(dst) as temporary:
        tokenizer = read_tokenizer(source)
        model = assemble_model(source, _placement(dtype, "cpu"), tokenizer)
        _name_tower_from_anywhere(model.config, source)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(str(temporary))


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `path` in one step on leaving the block.

    An exception inside the block leaves nothing behind.

    Raises:
        CheckpointError: `path` is there and holds something, or cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path}: is there already; give another name or remove it first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        yield temporary
        # Temporary folders and safetensors' files are private; a model is for all who may enter the folder.
        temporary.chmod(0o755)
        for entry in temporary.iterdir():
            entry.chmod(0o644)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: could not be written ({error}); nothing was left there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _placement(dtype: str, device: str) -> Any:
    return plan_placement(
        device=device, device_map="auto", dtype=dtype, load_8bit=False, load_4bit=False, use_flash_attn=False
    )


def _name_tower_from_anywhere(config: Any, source: Source) -> None:
    """A tower named relative to the adapter's folder would not be found from the new one."""
    name = config.mm_vision_tower if source.is_multimodal else None
    if name and not Path(name).is_dir() and (folder := find_folder(name, near=source.folders)):
        config.mm_vision_tower = str(folder)


@torch.no_grad()
def _probe(model: Any) -> torch.Tensor:
    """Logits (L, V) in float32 for ids spread over the vocabulary; merging leaves the image side alone."""
    model.eval()
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, rows, max(1, rows // _PROBE_LENGTH))[:_PROBE_LENGTH]
    return model(input_ids=ids[None].to(model.device)).logits[0].float().cpu()


def _require_same(one: torch.Tensor, other: torch.Tensor, dtype: torch.dtype, step: str) -> None:
    """Raise a `CheckpointError` if logits differ by more than rounding does, or are not numbers."""
    apart = (one - other).abs().max().item()
    allowed = _TOLERANCE[dtype] * one.abs().max().item()
    if not apart <= allowed:  # also where it is not a number
        raise CheckpointError(
            f"{step} moved a logit by {apart:.3g}, {allowed:.3g} is the most that rounding does: nothing was "
            "written"
        )
