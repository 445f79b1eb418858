"""Which checkpoints an output folder has, and whether one is whole.

A checkpoint has a list of checksums, written last. One without it, as older versions and the original leave,
is judged by which files there are and whether they can be opened.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from llava.errors import CheckpointError
from llava.files import atomic_write
from llava.model.loading.checkpoint import ADAPTER_FILES, PROJECTOR_FILES, find_first_file
from llava.model.loading.weights import check_weight_file, find_weight_files
from llava.schema import JsonObject

STATE_FILE = "trainer_state.json"  # in a checkpoint, and at the end of a run
CHECKSUMS = "SHA256SUMS"  # `sha256sum --check SHA256SUMS` reads it too
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin", "latest")  # `latest` is DeepSpeed's
_READERS = 8  # files hashed at the same time

_NAME = re.compile(r"checkpoint-(\d+)")
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def list_checkpoints(output: Path) -> list[Path]:
    """Return the checkpoint-N folders of an output folder, by number of steps; whole or not."""
    found = [path for path in output.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (step_of(path), path.name))


def step_of(checkpoint: Path) -> int:
    """Return how many steps a checkpoint has done: its state says so, else its name."""
    state = read_state(checkpoint / STATE_FILE)
    named = _NAME.fullmatch(checkpoint.name)
    return int(state["global_step"]) if state else int(named[1]) if named else 0


def read_state(path: Path) -> JsonObject | None:
    """Return what a state file holds; None if it is missing or damaged."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(state, dict) and all(
        isinstance(state.get(name), int) for name in ("global_step", "max_steps")
    )
    return state if known else None


def write_checksums(checkpoint: Path) -> None:
    """Write the checksums of all files of a checkpoint. Call it once, when all ranks have written theirs."""
    names = sorted(
        path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()
    )
    with atomic_write(checkpoint / CHECKSUMS) as stream:
        stream.writelines(f"{digest}  {name}\n" for name, digest in _digests(checkpoint, names))


def find_damage(checkpoint: Path) -> CheckpointError | None:
    """Return why a checkpoint cannot be resumed, naming the file; None if it is whole. Reads every file."""
    if (checkpoint / CHECKSUMS).is_file():
        return next(chain(_changed(checkpoint), _missing(checkpoint)), None)
    return next(chain(_missing(checkpoint), _unreadable(checkpoint)), None)


def _missing(checkpoint: Path) -> Iterator[CheckpointError]:
    """Yield what a checkpoint of any version must have and this one has not."""

    def lacks(wanted: str) -> CheckpointError:
        return CheckpointError(
            f"{checkpoint}: not a complete checkpoint: {wanted} is missing", code="incomplete-checkpoint"
        )

    if read_state(checkpoint / STATE_FILE) is None:
        yield CheckpointError(
            f"{checkpoint / STATE_FILE}: missing or damaged, so this is not a complete checkpoint",
            code="incomplete-checkpoint",
        )
    by_deepspeed = (checkpoint / "latest").is_file()
    has = {
        "optimizer.pt": find_first_file(checkpoint, OPTIMIZER_FILES) is not None,
        "scheduler.pt": by_deepspeed or (checkpoint / "scheduler.pt").is_file(),
        "rng_state.pth": any(checkpoint.glob("rng_state*.pth")),
    }
    if not any(has.values()):
        yield CheckpointError(
            f"{checkpoint}: holds weights only, as --save_only_model True writes, and cannot be resumed",
            code="weights-only",
        )
    yield from (lacks(name) for name, is_there in has.items() if not is_there)
    if by_deepspeed and not any(checkpoint.glob("global_step*/*_optim_states.pt")):
        yield lacks("DeepSpeed's global_step folder")
    try:
        has_weights = bool(find_weight_files(checkpoint))
    except CheckpointError as error:
        yield error
        return
    if not (has_weights or by_deepspeed or find_first_file(checkpoint, (*ADAPTER_FILES, *PROJECTOR_FILES))):
        yield lacks("the file of its weights")


def _unreadable(checkpoint: Path) -> Iterator[CheckpointError]:
    """Yield the files that cannot be opened. PyTorch's files have checksums of their own."""
    suffixes = (".pt", ".pth", ".bin", ".safetensors")
    for path in sorted(each for each in checkpoint.rglob("*") if each.suffix in suffixes):
        try:
            check_weight_file(path)
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    is_intact = archive.testzip() is None
            else:
                is_intact = True
        except (CheckpointError, OSError, zipfile.BadZipFile):
            is_intact = False
        if not is_intact:
            yield _damaged(path, "cannot be read to its end")


def _changed(checkpoint: Path) -> Iterator[CheckpointError]:
    """Yield the files that are not as the checksums say."""
    lines = (checkpoint / CHECKSUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    listed = [_LINE.fullmatch(line) for line in lines]
    wanted = {match[2]: match[1] for match in listed if match}
    if not wanted or None in listed:
        yield _damaged(checkpoint / CHECKSUMS, "is not a list of checksums")
        return
    for name in wanted:
        if not (checkpoint / name).is_file():
            yield _damaged(checkpoint / name, "is missing")
            return
    try:
        for name, digest in _digests(checkpoint, list(wanted)):
            if digest != wanted[name]:
                yield _damaged(checkpoint / name, "is not as it was written (its checksum differs)")
    except OSError as error:
        yield _damaged(checkpoint, f"cannot be read ({error.strerror})")


def _digests(folder: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    def digest(name: str) -> str:
        with (folder / name).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    with ThreadPoolExecutor(_READERS) as readers:
        yield from zip(names, readers.map(digest, names), strict=True)


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path}: {problem}, so this checkpoint is damaged", code="damaged-checkpoint")
