"""A folder of weights that is there whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from llava.errors import CheckpointError


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
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
