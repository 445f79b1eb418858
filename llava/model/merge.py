"""Merge an adapter into its base and check that the result answers as before; rewrite a full model."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from llava.errors import CheckpointError, one_line
from llava.files import atomic_folder
from llava.model import lora
from llava.model.builder import assemble_model, load_to_rewrite, read_tokenizer
from llava.model.card import write_card
from llava.model.fields import image_fields
from llava.model.language_model.llava_llama import LlavaConfig
from llava.model.loading.locate import find_folder
from llava.model.loading.placement import plan_rewriting
from llava.model.loading.source import Source, find_source
from llava.scoring.metrics import read_scores

logger = logging.getLogger(__name__)

# How far merging may move a logit, relative to the largest logit. Merged weights are rounded once in every
# layer: 20 layers of random weights moved it by 1.1 % in float16 and 7.5 % in bfloat16. A wrong merge moves
# it as far as the adapter does.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}
_PROBE = (4, 8)  # prompts, token ids of each
_SHARD = "1GB"


def merge_lora(
    model_path: str,
    model_base: str | None,
    save_path: Path,
    *,
    dtype: str = "float16",
    device: str = "cpu",
    scores: Sequence[Path] = (),
) -> None:
    """Merge an adapter into its base and write the result as a full model, with a model card.

    The logits of a probe batch are compared before merging, after it, and after reading the result back.
    At its peak it needs one copy of the weights, the adapter, and 12 bytes for each element of the largest
    matrix, which PEFT merges in float32.

    Args:
        model_path: The adapter.
        model_base: Its base; if None, the one that the adapter names.
        save_path: A folder that does not exist yet or is empty.
        dtype: The precision to compute in and to write.
        device: Where to compute; a CPU is enough.
        scores: The metrics.json files, or their folders, that the model card shows.

    Raises:
        CheckpointError: A file is missing or damaged, `save_path` exists, or the logits differ.
        DataError: A metrics.json is missing or damaged.
    """
    shown = [*map(read_scores, scores)]
    source = find_source(model_path, model_base)
    if source.kind != "adapter":
        raise CheckpointError(
            f"{source.folder}: holds no adapter, so there is nothing to merge", code="not-an-adapter"
        )
    with new_model_folder(save_path) as temporary:
        placement = plan_rewriting(dtype, device)
        tokenizer, wrapped, _ = load_to_rewrite(source, placement)
        before = _compute_logits(wrapped)
        model = lora.merge_adapter(wrapped)
        after = _compute_logits(model)
        _require_close(before, after, placement.dtype, "merging")
        _make_tower_absolute(model.config, source)
        model.save_pretrained(temporary, max_shard_size=_SHARD)
        tokenizer.save_pretrained(str(temporary))
        write_card(temporary, source, scores=shown)
        del wrapped, model  # two models of this size may not fit

        again = load_to_rewrite(find_source(temporary, None), placement)[1]
        _require_close(after, _compute_logits(again), torch.float32, "writing and reading back")
    logger.info(f"{save_path}: merged; the logits before and after agree")


def consolidate(src: str, dst: Path, *, dtype: str = "float16") -> None:
    """Rewrite a full model without its vision tower, which is loaded from `mm_vision_tower` anyway.

    Raises:
        CheckpointError: `src` is not a full model, or `dst` exists.
    """
    source = find_source(src, None)
    if source.kind != "full":
        raise CheckpointError(
            f"{source.folder}: holds no full model; merge an adapter instead", code="not-a-full-model"
        )
    with new_model_folder(dst) as temporary:
        tokenizer = read_tokenizer(source)
        model = assemble_model(source, plan_rewriting(dtype), tokenizer)
        _make_tower_absolute(model.config, source)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(str(temporary))


@contextmanager
def new_model_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` at the end of the block.

    An exception inside the block leaves nothing behind.

    Raises:
        CheckpointError: `path` exists and is not empty, or cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(
            f"{path}: exists already; give another name or remove it first", code="output-exists"
        )
    try:
        with atomic_folder(path) as staging:
            yield staging
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise CheckpointError(
            f"{path}: could not be written ({reason}); nothing was left there", code="not-writable"
        ) from error


def _make_tower_absolute(config: LlavaConfig, source: Source) -> None:
    """Replace a tower's path relative to the source by an absolute one, which the new folder needs."""
    name = image_fields(config).mm_vision_tower if source.is_multimodal else None
    if name and not Path(name).is_dir() and (folder := find_folder(name, near=source.folders)):
        config.mm_vision_tower = str(folder)


@torch.no_grad()
def _compute_logits(model: PreTrainedModel) -> torch.Tensor:
    """Return float32 logits (N, L, V) of ids from all the vocabulary; merging changes no image weights."""
    model.eval()
    rows = model.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(1, rows - 1, math.prod(_PROBE), device=model.device).long().view(_PROBE)
    return model(input_ids=ids).logits.float().cpu()


def _require_close(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype, step: str) -> None:
    """Raise a `CheckpointError` if logits differ by more than rounding explains, or are NaN."""
    difference = (before - after).abs().max().item()
    allowed = _TOLERANCE[dtype] * before.abs().max().item()
    if not difference <= allowed:  # true for NaN as well
        raise CheckpointError(
            f"{step} moved a logit by {difference:.3g}, {allowed:.3g} is the most that rounding does; "
            "nothing was written",
            code="merge-changed-logits",
        )
