"""Find the local folder of a model: as given, near a checkpoint, or downloaded from the Hugging Face Hub."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import httpx

from llava.errors import CheckpointError
from llava.files import atomic_write

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

# The files to download or upload for a model.
MODEL_FILES = ("*.json", "*.model", "*.txt", "*.safetensors", "*.bin")
# Of these, what only training needs.
TRAINING_FILES = ("training_args.bin", "optimizer.bin", "scheduler.bin", "trainer_state.json")
_MARKER_FILES = ("config.json", "adapter_config.json")


def locate(name: str | Path, *, near: Sequence[Path] = (), what: str = "model") -> Path:
    """Return the local folder of a model, downloading it from the hub if there is no such folder.

    Args:
        name: A folder, or a hub id such as `liuhaotian/llava-v1.5-7b`.
        near: Checkpoint folders. A relative name is also looked up in each of them and its two parents.
        what: What the folder is, for error messages.

    Raises:
        CheckpointError: `name` is a file, or neither a folder nor a model that the hub can provide.
    """
    folder = find_folder(name, near=near)
    if folder is not None:
        return folder
    given = Path(name).expanduser()
    if given.is_file():
        raise CheckpointError(
            f"{given}: {what} is a file, wanted the folder that holds config.json", code="not-a-folder"
        )
    if not _HUB_ID.fullmatch(str(name)):
        raise CheckpointError(f"{name}: no such folder ({what})", code="unknown-model")
    try:
        return _download(str(name))
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: no such folder ({what}), and no such model on the hub", code="unknown-model"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError) as error:
        raise CheckpointError(
            f"{name}: no such folder ({what}), and as a hub id it is not in the cache and the hub cannot be "
            "reached",
            code="hub-unreachable",
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{name}: no such folder ({what}), and the hub says: {first}", code="hub-error"
        ) from error


def find_folder(name: str | Path, *, near: Sequence[Path] = ()) -> Path | None:
    """Return the folder `name`, or None if it does not exist; `near` is as in `locate`."""
    given = Path(name).expanduser()
    candidates = [given]
    if not given.is_absolute():
        starts = [folder.resolve() for folder in near]
        candidates += [parent / given for start in starts for parent in (start, *start.parents[:2])]
    return next((folder for folder in candidates if folder.is_dir()), None)


def run_folders(folder: Path) -> list[Path]:
    """Return where a checkpoint's small files may be: in its folder, or for a checkpoint-N in its run's."""
    return [folder, *([folder.parent] if folder.name.startswith("checkpoint-") else [])]


def find_hub_id(name: str) -> str | None:
    """Return `name` if it can be that of a model on the hub, OWNER/NAME, and is no folder here."""
    return name if "/" in name and _HUB_ID.fullmatch(name) and not Path(name).is_dir() else None


@functools.cache
def _download(hub_id: str) -> Path:
    """Download what the cache lacks of a model; return its snapshot folder.

    The hub is asked once in a process, so that a fingerprint and the weights are of the same commit.
    """
    try:
        info = HfApi().model_info(hub_id, revision="main")
    except (OfflineModeIsEnabled, httpx.TransportError):
        return _cached(hub_id)
    names = _select_files([sibling.rfilename for sibling in info.siblings or []])
    fetched = [Path(hf_hub_download(hub_id, name, revision=info.sha)) for name in names]
    if not fetched:
        raise CheckpointError(f"{hub_id}: holds no model files on the hub", code="missing-model")
    _point_main_to(fetched[0].parent)
    return fetched[0].parent


def _cached(hub_id: str) -> Path:
    """Return the snapshot in the cache, for when the hub cannot be reached."""
    for name in _MARKER_FILES:
        try:
            return Path(hf_hub_download(hub_id, name, local_files_only=True)).parent
        except LocalEntryNotFoundError:
            continue
    raise LocalEntryNotFoundError(f"{hub_id} is not in the cache")


def _point_main_to(snapshot: Path) -> None:
    """Record `snapshot` as the cache's `main`, so that a later run without a network finds it."""
    reference = snapshot.parent.parent / "refs" / "main"
    with atomic_write(reference) as stream:
        stream.write(snapshot.name)


def _select_files(names: Sequence[str]) -> list[str]:
    """Keep the names to download: no .bin weights that also exist as .safetensors."""
    skipped = ["*/*", *TRAINING_FILES]
    for safe, old in (("model", "pytorch_model"), ("adapter_model", "adapter_model")):
        if any(re.fullmatch(safe + r"(-\d+-of-\d+)?\.safetensors", name) for name in names):
            skipped += [f"{old}.bin", f"{old}-*.bin", f"{old}.bin.index.json"]
    return [
        name
        for name in names
        if any(fnmatch(name, pattern) for pattern in MODEL_FILES)
        and not any(fnmatch(name, pattern) for pattern in skipped)
    ]
