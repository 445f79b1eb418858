"""Where a model's files lie: a folder as given, one beside a checkpoint, or a hub id fetched to the cache.

Knows nothing of what the files hold.
"""

from __future__ import annotations

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

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

# What a checkpoint at a hub id is made of; its training state and other frameworks' weights stay there.
_WANTED = ("*.json", "*.model", "*.txt", "*.safetensors", "*.bin")
_LEFT = ("*/*", "training_args.bin", "optimizer.bin", "scheduler.bin", "trainer_state.json")
_ALWAYS_THERE = ("config.json", "adapter_config.json")


def locate(name: str | Path, *, near: Sequence[Path] = (), what: str = "model") -> Path:
    """The local folder of `name`.

    Args:
        name: A folder, or a hub id such as `liuhaotian/llava-v1.5-7b`.
        near: Checkpoints' folders: a relative name is also looked for in each and in the two above it.
        what: What is looked for, for the message.

    Raises:
        CheckpointError: `name` is a file, or neither a folder nor a hub id that can be had.
    """
    folder = find_folder(name, near=near)
    if folder is not None:
        return folder
    given = Path(name).expanduser()
    if given.is_file():
        raise CheckpointError(f"{given}: {what} is a file, wanted the folder that holds config.json")
    if not _HUB_ID.fullmatch(str(name)):
        raise CheckpointError(f"{name}: no such folder ({what})")
    try:
        return _fetch(str(name))
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{name}: no such folder ({what}), and no such model on the hub") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.TransportError) as error:
        raise CheckpointError(
            f"{name}: no such folder ({what}), and as a hub id it is not in the cache and the hub cannot be "
            "reached"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{name}: no such folder ({what}), and the hub says: {first}") from error


def find_folder(name: str | Path, *, near: Sequence[Path] = ()) -> Path | None:
    """`name` as a folder, from here or from a checkpoint's folder; None if there is no such folder."""
    given = Path(name).expanduser()
    places = [given]
    if not given.is_absolute():
        here = [folder.resolve() for folder in near]
        places += [folder / given for place in here for folder in (place, *place.parents[:2])]
    return next((place for place in places if place.is_dir()), None)


def find_hub_revision(hub_id: str) -> str | None:
    """The commit that `locate` takes of `hub_id`; None where neither the hub nor the cache knows it."""
    if not _HUB_ID.fullmatch(hub_id):
        return None
    try:
        return HfApi().model_info(hub_id, revision="main").sha
    except (OfflineModeIsEnabled, httpx.TransportError):
        try:
            return _cached(hub_id).name
        except LocalEntryNotFoundError:
            return None
    except (HfHubHTTPError, HFValidationError, OSError):
        return None


def _fetch(hub_id: str) -> Path:
    """The hub's files in the cache, fetched as far as they are not there yet."""
    try:
        about = HfApi().model_info(hub_id, revision="main")
    except (OfflineModeIsEnabled, httpx.TransportError):
        return _cached(hub_id)
    names = _worth_fetching([sibling.rfilename for sibling in about.siblings or []])
    fetched = [Path(hf_hub_download(hub_id, name, revision=about.sha)) for name in names]
    if not fetched:
        raise CheckpointError(f"{hub_id}: holds no model files on the hub")
    # Noted as the newest, so that a later run without a network finds it.
    _note_newest(fetched[0].parent)
    return fetched[0].parent


def _cached(hub_id: str) -> Path:
    """What was fetched before, for when the hub cannot be asked."""
    for name in _ALWAYS_THERE:
        try:
            return Path(hf_hub_download(hub_id, name, local_files_only=True)).parent
        except LocalEntryNotFoundError:
            continue
    raise LocalEntryNotFoundError(f"{hub_id} is not in the cache")


def _note_newest(snapshot: Path) -> None:
    reference = snapshot.parent.parent / "refs" / "main"
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(snapshot.name, encoding="utf-8")


def _worth_fetching(names: Sequence[str]) -> list[str]:
    """A model's own files, without .bin weights that are there as .safetensors too."""
    left = list(_LEFT)
    for safe, old in (("model", "pytorch_model"), ("adapter_model", "adapter_model")):
        if any(re.fullmatch(safe + r"(-\d+-of-\d+)?\.safetensors", name) for name in names):
            left += [f"{old}.bin", f"{old}-*.bin", f"{old}.bin.index.json"]
    return [
        name
        for name in names
        if any(fnmatch(name, pattern) for pattern in _WANTED)
        and not any(fnmatch(name, each) for each in left)
    ]
