"""Upload a model's folder to the Hugging Face Hub: weights, config, tokenizer and card; no training state.

The token is HF_TOKEN's or that of `hf auth login`. It is neither a flag nor in a message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import httpx

from llava.errors import CheckpointError, one_line
from llava.model.loading.checkpoint import detect_kind
from llava.model.loading.locate import MODEL_FILES, TRAINING_FILES

# Checkpoints, unfinished files, logs, and what only this run needs.
_LEFT_OUT = ("checkpoint-*", "earlier-*", ".*", "*/.*", "runs/*", "wandb/*", "data_check_*", *TRAINING_FILES)


def make_repo(repo: str, *, private: bool | None = None) -> None:
    """Make a model's repository on the hub, unless it is there.

    Raises:
        CheckpointError: There is no token, or the hub refuses it or cannot be reached.
    """
    with _explained(repo):
        HfApi().create_repo(repo, private=private, exist_ok=True)


def push_folder(folder: Path, repo: str, *, revision: str | None = None) -> str:
    """Upload a model's folder as one commit, and return the commit's address.

    Args:
        folder: What training, `llava merge` or `llava export` wrote.
        repo: OWNER/NAME of a repository that is there.
        revision: A branch; None for main.

    Raises:
        CheckpointError: The folder holds no model, there is no token or no such repository, or the hub
            refuses the upload or cannot be reached.
    """
    detect_kind(folder)
    with _explained(repo):
        commit = HfApi().upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[*MODEL_FILES, "*.md", "*.jinja"],
            ignore_patterns=[*_LEFT_OUT],
            commit_message="Upload with llava",
            revision=revision,
        )
    return str(commit.commit_url)


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
