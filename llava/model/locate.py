"""Where a model's files lie: a folder as given, one beside a checkpoint, or a hub id fetched to the cache.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from llava.errors import CheckpointError

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")

# What a checkpoint at a hub id is made of; its training state and other frameworks' weights stay there.
_WANTED = ["*.json", "*.model", "*.txt", "*.safetensors", "*.bin"]
_LEFT = ["*/*", "training_args.bin", "optimizer.bin", "tf_model*", "flax_model*"]


def locate(name: str | Path, *, near: Path | None = None, what: str = "model") -> Path:
    """The local folder of `name`.

    Args:
        name: A folder, or a hub id such as `liuhaotian/llava-v1.5-7b`.
        near: A checkpoint's folder: a relative name is also looked for in it and in the two folders above.
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
    return _fetch(str(name), what)


def find_folder(name: str | Path, *, near: Path | None = None) -> Path | None:
    """`name` as a folder, from here or from a checkpoint's folder; None if there is no such folder."""
    given = Path(name).expanduser()
    places = [given]
    if near is not None and not given.is_absolute():
        here = near.resolve()
        places += [folder / given for folder in (here, *here.parents[:2])]
    return next((place for place in places if place.is_dir()), None)


def _fetch(hub_id: str, what: str) -> Path:
    """The hub's snapshot in the cache, fetched as far as it is not there yet."""
    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=_WANTED, ignore_patterns=_LEFT + _doubled(hub_id))
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{hub_id}: no such folder ({what}), and as a hub id it is not in the cache and the hub "
            "cannot be reached"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{hub_id}: no such folder ({what}), and the hub says: {first}") from error


def _doubled(hub_id: str) -> list[str]:
    """Patterns of weights the hub holds a second time: .bin beside .safetensors."""
    try:
        files = HfApi().list_repo_files(hub_id)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError):
        return []  # snapshot_download answers from the cache, or says what is wrong
    doubled = []
    for safe, old in (("model", "pytorch_model"), ("adapter_model", "adapter_model")):
        if any(re.fullmatch(safe + r"(-\d+-of-\d+)?\.safetensors", name) for name in files):
            doubled += [f"{old}.bin", f"{old}-*.bin", f"{old}.bin.index.json"]
    return doubled
