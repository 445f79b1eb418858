"""The model's name in answers, from its path. Needs no torch."""

from __future__ import annotations

from pathlib import PurePosixPath


def get_model_name_from_path(model_path: str) -> str:
    """Return the last part of the path, and for a `checkpoint-N` its parent's name, too.

    `liuhaotian/llava-v1.5-7b` is llava-v1.5-7b, `./x/llava/checkpoint-5/` is llava_checkpoint-5.
    Source: LLaVA v1.2.2 llava/mm_utils.py, which failed for a bare `checkpoint-5`.
    """
    parts = PurePosixPath(model_path).parts
    name = parts[-1] if parts else model_path
    if name.startswith("checkpoint-") and len(parts) > 1:
        return f"{parts[-2]}_{name}"
    return name
