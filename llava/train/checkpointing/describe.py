"""Describe a run for the file `llava_run.json` beside its weights: see model/loading/run_record.py."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

from llava import __version__
from llava.files import write_json
from llava.infer.digests import hash_files_once
from llava.model.loading.locate import locate
from llava.model.loading.run_record import RUN_FILE, fingerprint_base
from llava.schema import JsonObject
from llava.train.checkpointing.save import explain_write_errors
from llava.train.checkpointing.settings import WORKING_FOLDER

if TYPE_CHECKING:
    from llava.train.llava_trainer import LLaVATrainer

_LIBRARIES = ("torch", "transformers", "peft")


def write_run_record(trainer: LLaVATrainer) -> None:
    """Write `llava_run.json` into the output folder, before the first step: later the base may be gone.

    Raises:
        CheckpointError: It cannot be written.
    """
    if trainer.args.should_save:
        output = Path(str(trainer.args.output_dir))
        with explain_write_errors(output):
            write_json(output / RUN_FILE, _describe(trainer))


def _describe(trainer: LLaVATrainer) -> JsonObject:
    """Return what is known about a run."""
    config, settings = trainer.model.config, trainer.args.learned_from
    base = str(config.name_or_path)
    sets = getattr(trainer.train_dataset, "parts", [trainer.train_dataset])
    paths = [each.data_path for each in sets]
    fields: JsonObject = {
        "kind": trainer.kind,
        "base": {"name": base, **fingerprint_base(locate(base))},
        "vision_tower": getattr(config, "mm_vision_tower", None),
        "projector": getattr(config, "mm_projector_type", None),
        "template": getattr(config, "conversation_template", None),
        "data": dict(zip(map(str, paths), hash_files_once(paths), strict=True)),
        "versions": {"llava": __version__}
        | {library: importlib.metadata.version(library) for library in _LIBRARIES},
        "recipe": {name: settings[name] for name in settings if name != WORKING_FOLDER},
    }
    return {name: value for name, value in fields.items() if value}
