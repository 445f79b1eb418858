"""Upload a model's folder to the Hugging Face Hub: weights, config, tokenizer and card; no training state.

The token is HF_TOKEN's or that of `hf auth login`. It is neither a flag nor in a message.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects, httpx

from llava.errors import CheckpointError, one_line
from llava.model.card import without_folders
from llava.model.loading.checkpoint import ADAPTER_CONFIG, detect_kind, read_json_object
from llava.model.loading.locate import MODEL_FILES, TRAINING_FILES
from llava.model.loading.run_record import RUN_FILE

logger = logging.getLogger(__name__)

# Checkpoints, unfinished files, logs, and what only this run needs.
_LEFT_OUT = ("checkpoint-*", "earlier-*", ".*", "*/.*", "runs/*", "wandb/*", "data_check_*", *TRAINING_FILES)
# Files in which training and merging name bases, vision towers and data.
_WITH_PATHS = ("config.json", ADAPTER_CONFIG, RUN_FILE)


def make_repo(repo: str, *, private: bool | None = None) -> None:
    """Make a model's repository on the hub, unless it is there.

    Raises:
        CheckpointError: There is no token, or the hub refuses it or cannot be reached.
    """
    with _explained(repo):
        HfApi().create_repo(repo, private=private, exist_ok=True)


def push_folder(folder: Path, repo: str, *, revision: str | None = None) -> str:
    """Upload a model's folder as one commit, and return the commit's address.

    Of what the folder's JSON files name by a path of this machine, the hub gets the last part only.

    Args:
        folder: What training, `llava merge` or `llava export` wrote.
        repo: OWNER/NAME of a repository that is there.
        revision: A branch; None for main.

    Raises:
        CheckpointError: The folder holds no model, there is no token or no such repository, or the hub
            refuses the upload or cannot be reached.
    """
    detect_kind(folder)
    files = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    allowed = [*MODEL_FILES, "*.md", "*.jinja"]
    names = [*filter_repo_objects(files, allow_patterns=allowed, ignore_patterns=[*_LEFT_OUT])]
    contents = {name: _content(folder / name) for name in names}
    with _explained(repo):
        commit = HfApi().create_commit(
            repo,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message="Upload with llava",
            revision=revision,
        )
    return str(commit.commit_url)


def _content(path: Path) -> Path | bytes:
    """Return what to upload of a file: itself, or its JSON without the folders of this machine."""
    if path.name not in _WITH_PATHS:
        return path
    fields = read_json_object(path)
    shared = _shareable(fields)
    if shared == fields:
        return path
    logger.warning(
        f"{path}: names folders of this machine, of which only the last part is uploaded; name what others "
        "need by its hub id there"
    )
    return json.dumps(shared, ensure_ascii=False, indent=2).encode()


def _shareable(value: object) -> object:
    """Return a JSON value without the folders of this machine in its texts."""
    if isinstance(value, str):
        return without_folders(value)
    if isinstance(value, list):
        return [_shareable(item) for item in value]
    if not isinstance(value, dict):
        return value
    shared: dict[str, object] = {}
    for name, item in value.items():
        short = without_folders(name)
        # Two files of one name stay two.
        shared[short if short not in shared else f"{short} ({len(shared)})"] = _shareable(item)
    return shared


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn the hub's errors into a `CheckpointError` that says what to do."""
    if get_token() is None:
        raise CheckpointError(
            f"{repo}: no token of the hub is set: run `hf auth login`, or set HF_TOKEN to one that may write",
            code="no-hub-token",
        )
    try:
        yield
    except HFValidationError as error:
        raise CheckpointError(
            f"{repo}: wanted OWNER/NAME ({one_line(error, 200)})", code="bad-repository"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo}: no such repository on the hub, or none that this token may see; `llava push --create` "
            "makes it",
            code="unknown-repository",
        ) from error
    except (OfflineModeIsEnabled, httpx.TransportError) as error:
        raise CheckpointError(
            f"{repo}: the hub cannot be reached; try again", code="hub-unreachable"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = getattr(error, "server_message", None) or one_line(error, 200)
        raise CheckpointError(f"{repo}: the hub refused ({reason})", code="hub-refused") from error
