"""What a run leaves behind, by kind; each file is whole or not there.

Final outputs and every `checkpoint-N` hold what inference needs: config.json with the projector, or with the
adapter and non_lora_trainables.bin, or with the whole model. Source: LLaVA v1.2.2 train.py (files, keys).
"""

from __future__ import annotations

import copy
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from llava.errors import CheckpointError, SettingsError
from llava.files import flush_tree, write_json
from llava.model.loading.checkpoint import write_non_lora, write_projector
from llava.model.loading.weights import Tensors
from llava.model.lora import Bias, split_trained_state, write_adapter
from llava.model.zero3 import gather_copy
from llava.train.planning.footprint import numel

logger = logging.getLogger(__name__)

# torch and safetensors say a full disk with errors of their own.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)

STAGING = ".saving-"  # how folders of what is not whole yet begin


# The folders' descriptors that `lock_output_dir` holds its locks by.
_locked: set[int] = set()


def _leave_locks_to_parent() -> None:
    """A data loader's process may outlast a run that is killed, and must not keep its successor out."""
    while _locked:
        os.close(_locked.pop())


os.register_at_fork(after_in_child=_leave_locks_to_parent)


@contextmanager
def lock_output_dir(folder: Path, *, is_writer: bool) -> Iterator[None]:
    """Keep other runs out of an output folder for the length of the block; leaves no file behind.

    Raises:
        SettingsError: Another run writes there.
    """
    if not is_writer:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _locked.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(
                f"{folder}: another run is writing there; give another --output_dir, or wait for its end"
            ) from error
        except OSError as error:
            logger.info("%s: cannot be locked against other runs (%s)", folder, error.strerror)
        yield
    finally:
        _locked.discard(descriptor)
        os.close(descriptor)


@contextmanager
def written_whole(folder: Path, *, is_writer: bool) -> Iterator[Path]:
    """A folder to write into; on leaving the block its files appear in `folder`, one rename each.

    Files of the same name are replaced, others stay. If writing fails, `folder` stays as it was.

    Args:
        folder: Made if it is not there.
        is_writer: Whether this process writes; another gets `folder` itself and must not.

    Raises:
        CheckpointError: The files cannot be written: the disk is full, say.
    """
    if not is_writer:
        yield folder
        return
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
        try:
            yield staging
            flush_tree(staging)
            for path in sorted(staging.iterdir()):
                path.replace(folder / path.name)
            flush_tree(folder, deep=False)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the staging folders of a killed run. The caller must hold `lock_output_dir`."""
    for left in folder.glob(f"{STAGING}*"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def explain_write_errors(folder: Path) -> Iterator[None]:
    """Errors of writing name the folder and say what to do."""
    try:
        yield
    except WRITE_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: could not be written ({reason}); what was there is unchanged. Make room, or give "
            "another --output_dir"
        ) from error


def require_space(model: nn.Module, folder: Path, *, whole: bool) -> None:
    """Refuse to start a run whose result cannot be written where it is to go.

    Args:
        model: What is trained.
        folder: Where the result goes.
        whole: Whether all of the model is saved, or what is trained alone.

    Raises:
        CheckpointError: The disk has less room than the weights take.
    """
    saved = [each for each in model.parameters() if whole or each.requires_grad]
    needed = 2 * sum(numel(each) for each in saved)  # half precision is the least that is written
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder}: {free / 1e9:.2f} GB free, the result takes {needed / 1e9:.2f} GB: make room, or give "
            "another --output_dir"
        )


def write_config(folder: Path, config: Any) -> None:
    """Write config.json as those who load the result need it: with the cache on, which training turns off."""
    fields = copy.deepcopy(config)
    fields.use_cache = True
    # The language model it came from: what loads a projector or adapter names it when it is not given.
    write_json(folder / "config.json", {"_name_or_path": config.name_or_path, **fields.to_diff_dict()})


def save_lora(model: Any, folder: Path, *, bias: Bias, dtype: torch.dtype | None, is_writer: bool) -> None:
    """Write adapter, non_lora_trainables.bin and config.json. Under ZeRO-3 every process must call this."""
    state = split_trained_state(model.named_parameters(), bias)
    # A frozen projector goes along: nobody else may have the one it was trained with.
    frozen = gather_parameters(
        model.named_parameters(), lambda name: "mm_projector" in name and name not in state.non_lora
    )
    with written_whole(folder, is_writer=is_writer) as staging:
        if is_writer:
            model.create_or_update_model_card(str(staging))
            write_adapter(staging, model, state.adapter, dtype)
            write_non_lora(staging, {**state.non_lora, **frozen})
            write_config(staging, model.config)


def save_projector(model: Any, folder: Path, *, is_writer: bool) -> None:
    """Write mm_projector.bin (with the embeddings, if image tokens were added to them) and config.json."""
    marks = ("mm_projector", "embed_tokens") if model.config.mm_use_im_start_end else ("mm_projector",)
    tensors = gather_parameters(model.named_parameters(), lambda name: any(mark in name for mark in marks))
    with written_whole(folder, is_writer=is_writer) as staging:
        if is_writer:
            write_projector(staging, tensors)
            write_config(staging, model.config)


def gather_parameters(
    named_parameters: Iterable[tuple[str, nn.Parameter]], wanted: Callable[[str], bool]
) -> Tensors:
    """Some parameters on the CPU, each whole even if ZeRO-3 has it in parts."""
    chosen = [(name, parameter) for name, parameter in named_parameters if wanted(name)]
    tensors: Tensors = {}
    for name, parameter in chosen:
        tensors[name] = gather_copy(parameter)
    return tensors


def get_mm_adapter_state_maybe_zero_3(
    named_params: Iterable[tuple[str, nn.Parameter]], keys_to_match: Iterable[str]
) -> Tensors:
    """The original's name: whole copies of the parameters whose name holds one of the keys."""
    keys = tuple(keys_to_match)
    return gather_parameters(named_params, lambda name: any(key in name for key in keys))


def get_peft_state_maybe_zero_3(named_params: Iterable[tuple[str, nn.Parameter]], bias: Bias) -> Tensors:
    """The original's name: the adapter's tensors, as `adapter_model.safetensors` has them."""
    return split_trained_state(named_params, bias).adapter


def get_peft_state_non_lora_maybe_zero_3(named_params: Iterable[tuple[str, nn.Parameter]]) -> Tensors:
    """The original's name: what was trained beside the adapter."""
    return split_trained_state(named_params).non_lora
