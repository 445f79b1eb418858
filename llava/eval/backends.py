"""Choose what answers: the engine, or vLLM before it (`--backend`)."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from llava.errors import SettingsError
from llava.files import cache_folder
from llava.infer.jobs.fingerprint import fingerprint_model
from llava.infer.jobs.run import AnswerJob
from llava.json_text import parse_json
from llava.schema import JsonObject

if TYPE_CHECKING:
    from llava.infer.engine.load import Loaded
    from llava.infer.engine.requests import Generation, ModelChoice
    from llava.infer.vllm.answerer import Transport, VllmAnswerer
    from llava.infer.vllm.front import Front
    from llava.infer.vllm.offline import OfflineVllm

logger = logging.getLogger(__name__)

VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class VllmChoice:
    """Where vLLM runs: at `url`, or in this process with `settings` for its class LLM."""

    url: str | None = None
    settings: JsonObject = field(default_factory=dict)


def add_backend_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose what answers."""
    parser.add_argument(
        "--backend",
        metavar="vllm|URL",
        help="answer in vLLM, here or at a server of `vllm serve`; close calls are left to the engine",
    )
    parser.add_argument(
        "--backend-settings",
        metavar="JSON",
        help="""arguments of vllm.LLM, such as '{"tensor_parallel_size": 2}'""",
    )


def vllm_choice(flags: argparse.Namespace, generation: Generation, *, launched: bool) -> VllmChoice | None:
    """Return where the flags say vLLM runs; None for the engine alone.

    Raises:
        SettingsError: vLLM is not installed, or a flag does not go with it.
    """
    name, text = flags.backend, flags.backend_settings
    if text is not None and name != VLLM:
        raise SettingsError("--backend-settings are for --backend vllm", code="bad-backend-settings")
    if name is None:
        return None
    if not generation.is_greedy:
        raise SettingsError(
            "--backend answers greedily: give --temperature 0 and one beam", code="backend-is-greedy"
        )
    if flags.load_4bit or flags.load_8bit:
        raise SettingsError(
            "--backend goes with neither --load-4bit nor --load-8bit", code="backend-and-quantised"
        )
    if name.startswith(("http://", "https://")):
        if flags.dtype == "auto":
            raise SettingsError(
                "--backend URL needs --dtype: the precision that the server has", code="backend-needs-dtype"
            )
        return VllmChoice(url=name)
    if name != VLLM:
        raise SettingsError(f"--backend {name!r}: want vllm or a server's URL", code="unknown-backend")
    if launched:
        raise SettingsError(
            "--backend vllm is one process for all GPUs it sees: start it without torchrun or srun, with "
            """--backend-settings '{"tensor_parallel_size": N}'""",
            code="backend-is-launched",
        )
    if find_spec("vllm") is None:
        raise SettingsError(
            "--backend vllm needs vLLM: pip install 'llava[vllm]', or give a server's URL",
            code="missing-package",
        )
    return VllmChoice(settings=_read_settings(text))


def _read_settings(text: str | None) -> JsonObject:
    try:
        settings = {} if text is None else parse_json(text)
    except ValueError as error:
        raise SettingsError(f"--backend-settings: {error}", code="bad-backend-settings") from error
    if not isinstance(settings, dict) or {"model", "dtype"} & settings.keys():
        raise SettingsError(
            "--backend-settings: want a JSON object without model and dtype, which have flags",
            code="bad-backend-settings",
        )
    return settings


@contextmanager
def opened_vllm(
    choice: VllmChoice, load: Callable[[ModelChoice], Loaded]
) -> Iterator[Callable[[AnswerJob], VllmAnswerer]]:
    """Yield what opens vLLM for a job; it is started for the first and ends with the block.

    Args:
        choice: Where it runs.
        load: Loads the model for the engine, to compare a server's first answers.
    """
    with ExitStack() as stack:

        @functools.lru_cache(maxsize=1)
        def start(model: ModelChoice) -> tuple[Front, Transport]:
            from llava.infer.vllm.front import read_front
            from llava.infer.vllm.server import VllmServer

            _refuse_changes()
            front = read_front(model)
            if choice.url is not None:
                return front, stack.enter_context(closing(VllmServer(choice.url)))
            vllm = _start_offline(model, front, choice.settings)
            return front, stack.enter_context(closing(vllm))

        def open_job(job: AnswerJob) -> VllmAnswerer:
            from llava.infer.engine.engine import Engine
            from llava.infer.vllm.answerer import VllmAnswerer

            front, transport = start(job.model)
            return VllmAnswerer(
                front,
                transport,
                job.generation,
                dtype=job.model.dtype,
                exact=job.exact,
                compare_with=None if choice.url is None else lambda: Engine(load(job.model), job.generation),
            )

        yield open_job


def _start_offline(model: ModelChoice, front: Front, settings: JsonObject) -> OfflineVllm:
    from llava.infer.vllm.offline import OfflineVllm

    folder = export_once(model)
    return OfflineVllm(folder, dtype=model.dtype, context_length=front.context_length, settings=settings)


def _refuse_changes() -> None:
    """Raise a `SettingsError` if other code has changed the model: vLLM would not run that code."""
    from llava.infer.engine.load import find_changed_classes

    if (change := find_changed_classes()) is not None:
        raise SettingsError(f"{change}, and vLLM does not: leave out --backend", code="backend-and-changes")


def export_once(model: ModelChoice) -> Path:
    """Return the folder of the model for vLLM, with an adapter merged; it is kept in the cache folder."""
    from llava.exchange.hf_folder import export_hf

    about = [fingerprint_model(model.path, model.base), model.dtype]
    name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    folder = cache_folder() / "exports" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "config.json").is_file():
            logger.info(f"{folder}: {model.name} is exported for vLLM")
            export_hf(model.path, model.base, folder, dtype=model.dtype)
    return folder
