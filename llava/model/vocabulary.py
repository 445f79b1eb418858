"""Add the image tokens that some checkpoints use, and their rows in the embedding tables.

LLaVA-1.5 uses none of them; older and self-trained checkpoints may. Source: LLaVA v1.2.2 llava_arch.py.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.errors import CheckpointError, SettingsError
from llava.model.loading.weights import read_tensors

logger = logging.getLogger(__name__)


def add_image_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    patch: bool | None,
    start_end: bool | None,
) -> None:
    """Add the wanted tokens to the tokenizer, and rows for them to the embedding tables where needed."""
    if patch:
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if start_end:
        tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    if patch or start_end:
        grow_embeddings(model, len(tokenizer))


def grow_embeddings(model: PreTrainedModel, rows: int) -> None:
    """Grow both embedding tables to at least `rows` rows. New rows are the mean of the old ones.

    Raises:
        SettingsError: ZeRO-3 has split the tables, so that no rank can compute the mean.
    """
    table = model.get_input_embeddings().weight
    is_split = hasattr(table, "ds_shape")  # set by ZeRO-3, which leaves an empty tensor
    old = table.ds_shape[0] if is_split else table.shape[0]
    if rows <= old:
        return
    if is_split:
        raise SettingsError(
            f"the vocabulary must grow from {old} to {rows} rows, which ZeRO-3 cannot do: use "
            "scripts/zero2.json, or --mm_use_im_patch_token False and --mm_use_im_start_end False",
            code="zero3-vocabulary",
        )
    model.resize_token_embeddings(rows, mean_resizing=False)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        with torch.no_grad():
            table.weight[old:] = table.weight[:old].mean(dim=0, keepdim=True)
    logger.info("the vocabulary grew from %d to %d rows", old, rows)


def load_pretrained_rows(model: PreTrainedModel, adapter: Path) -> None:
    """Load the input embeddings of the start and end tokens from a stage-1 file.

    Raises:
        CheckpointError: The file has no embedding table, or one of another shape.
    """
    found = list(read_tensors(adapter, lambda name: "embed_tokens" in name).values())
    if not found:
        raise CheckpointError(
            f"{adapter}: holds no embed_tokens rows for <im_start> and <im_end>; train stage 1 with "
            "--mm_use_im_start_end True, or set it False here",
            code="missing-token-rows",
        )
    table, rows = model.get_input_embeddings().weight, found[0]
    if rows.shape[1] != table.shape[1] or rows.shape[0] not in (2, table.shape[0]):
        raise CheckpointError(
            f"{adapter}: embed_tokens is {tuple(rows.shape)}, the model's {tuple(table.shape)}",
            code="embedding-mismatch",
        )
    with torch.no_grad():
        table[-2:] = rows[-2:].to(table)
