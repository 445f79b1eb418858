"""The original's process helpers, under their original path."""

from __future__ import annotations

from llava.compat.process import (
    build_logger,
    disable_torch_init,
    moderation_msg,
    pretty_print_semaphore,
    server_error_msg,
    violates_moderation,
)

__all__ = [
    "build_logger",
    "disable_torch_init",
    "moderation_msg",
    "pretty_print_semaphore",
    "server_error_msg",
    "violates_moderation",
]
