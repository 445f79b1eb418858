"""The original's upgrade of old checkpoints, under its original path."""

from __future__ import annotations

from llava.compat.deltas import auto_upgrade

__all__ = ["auto_upgrade"]
