"""Write what a run leaves behind: an adapter, a projector or a whole model. Each file is complete or absent.

Final outputs and every `checkpoint-N` hold what inference needs: config.json with the projector, or with the
adapter and non_lora_trainables.bin, or with the whole model. Source: LLaVA v1.2.2 train.py (files, keys).
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from llava.errors import CheckpointError, SettingsError, one_line
from llava.files import atomic_folder, write_json
from llava.model.loading.checkpoint import write_non_lora, write_projector
from llava.model.loading.weights import Tensors
from llava.model.lora import Bias, split_trained_state, write_adapter
from llava.model.sharded import gather_copy
from llava.temporary import STAGING
from llava.train.planning.footprint import numel
from llava.train.planning.memory import Sharing

if TYPE_CHECKING:  # the trainer imports this module
    from llava.train.llava_trainer import LLaVATrainer

logger = logging.getLogger(__name__)

# torch and safetensors raise errors of their own when the disk is full.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)

LOCK = ".lock"


@contextmanager
def lock_output_dir(folder: Path, *, is_writer: bool) -> Iterator[None]:
    """Keep other runs out of an output folder. The lock ends with the process, however it ends.

    Raises:
        SettingsError: Another run writes there.
    """
    if not is_writer:
        yield
        return
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SettingsError(
            f"{folder}: another run is writing there; give another --output_dir, or wait for its end",
            code="folder-in-use",
        ) from error
    except OSError as error:
        logger.info("%s: cannot be locked against other runs (%s)", folder, error.strerror)
    try:
        yield
    finally:
        if lock.is_locked:
            # Before the release: a run that waits for this very file then makes a new one.
            (folder / LOCK).unlink(missing_ok=True)
            lock.release()


@contextmanager
def write_output(folder: Path, *, is_writer: bool) -> Iterator[Path]:
    """Yield a folder to write into, whose files appear in `folder` on leaving the block.

    Files of the same name are replaced, others stay. If writing fails, `folder` stays as it was.

    Args:
        folder: Created if it does not exist.
        is_writer: Whether this rank writes. Another rank gets `folder` itself and must not write.

    Raises:
        CheckpointError: The files cannot be written, for example because the disk is full.
    """
    if not is_writer:
        yield folder
        return
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        with atomic_folder(folder) as staging:
            yield staging


def remove_unfinished(folder: Path) -> None:
    """Remove the staging folders of a killed run. The caller must hold `lock_output_dir`."""
    for staging in folder.glob(f"{STAGING}*"):
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Turn write errors into a CheckpointError that names the folder and says what to do."""
    try:
        yield
    except WRITE_ERRORS as error:
        raise CheckpointError(
            f"{folder}: could not be written ({one_line(error, 200)}); what was there is unchanged. "
            "Make room, or give another --output_dir",
            code="not-writable",
        ) from error


def saved_bytes(trainer: LLaVATrainer) -> tuple[float, float]:
    """Return about how many bytes the result of a run takes, and a checkpoint."""
    args, is_whole = trainer.args, trainer.kind == "full"
    result = checkpoint = 0.0
    for name, parameter in trainer.model.named_parameters():
        # An adapter is saved with its projector, even if that is frozen.
        if not (is_whole or parameter.requires_grad or "mm_projector" in name):
            continue
        count, size = numel(parameter), parameter.element_size()
        result += count * (size if trainer.kind == "projector" else args.compute_dtype.itemsize)
        checkpoint += count * size
        if parameter.requires_grad:
            # DeepSpeed's own files have the weights again, and float32 copies of them.
            checkpoint += count * (Sharing.of(args).optimizer + (size if args.deepspeed else 0))
    return result, checkpoint


def require_space(trainer: LLaVATrainer, folder: Path) -> None:
    """Check that the disk has room for the result, and warn if a checkpoint does not fit beside it.

    Raises:
        CheckpointError: The disk has less room than the result takes.
    """
    result, checkpoint = saved_bytes(trainer)
    free = shutil.disk_usage(folder).free
    if free < result:
        raise CheckpointError(
            f"{folder}: {_gigabytes(free)} free, the result takes {_gigabytes(result)}: make room, or give "
            "another --output_dir",
            code="disk-full",
        )
    saves = trainer.args.save_strategy.value != "no"
    if saves and free < result + checkpoint:
        logger.warning(
            "%s: %s free; a checkpoint takes %s and the result %s, so none can be written: make room",
            *(folder, *map(_gigabytes, (free, checkpoint, result))),
        )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def write_config(folder: Path, config: PretrainedConfig) -> None:
    """Write config.json with the key-value cache on, which training turns off."""
    fields = copy.deepcopy(config)
    fields.use_cache = True
    # Names the base that a projector or an adapter is loaded on if no other is given.
    write_json(folder / "config.json", {"_name_or_path": config.name_or_path, **fields.to_diff_dict()})


def copy_vocabulary(tokenizer: object, folder: Path) -> None:
    """Copy the `tokenizer.model` that a tokenizer was read from into `folder`, unless it is there.

    transformers 5's own tokenizers, which other training programs pass, do not write it; the original and
    this package read nothing else.
    """
    source = Path(getattr(tokenizer, "vocab_file", None) or "")
    if source.name == "tokenizer.model" and source.is_file() and not (folder / source.name).exists():
        shutil.copyfile(source, folder / source.name)


def save_lora(
    model: PreTrainedModel, folder: Path, *, bias: Bias, dtype: torch.dtype | None, is_writer: bool
) -> None:
    """Write the adapter, non_lora_trainables.bin and config.json. Under ZeRO-3 every rank must call this."""
    state = split_trained_state(model.named_parameters(), bias)
    # A frozen projector is saved too: the adapter only works with the one it was trained with.
    frozen = copy_tensors(
        model.named_parameters(), lambda name: "mm_projector" in name and name not in state.non_lora
    )
    with write_output(folder, is_writer=is_writer) as staging:
        if is_writer:
            write_adapter(staging, model, state.adapter, dtype)
            write_non_lora(staging, {**state.non_lora, **frozen})
            write_config(staging, model.config)


def save_projector(model: PreTrainedModel, folder: Path, *, is_writer: bool) -> None:
    """Write config.json and mm_projector.bin, which holds the embeddings too if image tokens were added."""
    marks = ["mm_projector"]
    if getattr(model.config, "mm_use_im_start_end", None):
        marks.append("embed_tokens")
    tensors = copy_tensors(model.named_parameters(), lambda name: any(mark in name for mark in marks))
    with write_output(folder, is_writer=is_writer) as staging:
        if is_writer:
            write_projector(staging, tensors)
            write_config(staging, model.config)


def copy_tensors(
    named_parameters: Iterable[tuple[str, nn.Parameter]], wanted: Callable[[str], bool]
) -> Tensors:
    """Copy the parameters with `wanted` names to the CPU, gathered from all ranks under ZeRO-3."""
    return {name: gather_copy(parameter) for name, parameter in named_parameters if wanted(name)}
