"""Write a model card: `README.md` with the front matter that the Hugging Face Hub reads.

It says only what is on disk: the run's `llava_run.json`, the config, and the scores that are given. Of paths
of this machine it says the last part. The licence is left to the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from llava.files import atomic_write, write_json
from llava.model.loading.checkpoint import Kind, read_config
from llava.model.loading.locate import find_hub_id
from llava.model.loading.run_record import RUN_FILE, read_run_record
from llava.model.loading.source import Source
from llava.schema import JsonObject, Scores
from llava.scoring.markup import escape_markdown
from llava.scoring.metrics import format_interval, format_score

_TITLES: dict[Kind, str] = {
    "full": "LLaVA-1.5 model",
    "adapter": "LLaVA-1.5 adapter (LoRA)",
    "projector": "LLaVA-1.5 projector",
}
_LOADERS = {
    "llava": """\
from llava import load

model = load("this folder, or its name on the hub"{base})
print(model.answer([("photo.jpg", "What is unusual here?")]))
""",
    "transformers": """\
from transformers import AutoProcessor, LlavaForConditionalGeneration

name = "this folder, or its name on the hub"
model = LlavaForConditionalGeneration.from_pretrained(name)
processor = AutoProcessor.from_pretrained(name)
""",
}


def write_card(
    folder: Path,
    source: Source,
    *,
    kind: Kind = "full",
    scores: Sequence[Scores] = (),
    library: str = "llava",
) -> None:
    """Write `README.md`, and beside it the `llava_run.json` of the run, if it has one.

    Args:
        folder: A model's new folder.
        source: What the model was made of.
        kind: What the new folder holds.
        scores: The scores to show.
        library: Which library loads the folder: llava or transformers.
    """
    record, config = read_run_record(source.folder), read_config(source.config_folder)
    base = record.get("base")
    named = base.get("name") if isinstance(base, dict) else source.base_name
    on_hub = named and find_hub_id(str(named))
    data = ModelCardData(
        pipeline_tag="image-text-to-text",
        base_model=on_hub,
        base_model_relation=kind if on_hub and kind == "adapter" else None,
    )
    if library == "transformers":  # the hub knows no library llava
        data.library_name = library
    parts = {
        "base": named,
        "vision tower": record.get("vision_tower") or config.get("mm_vision_tower"),
        "projector": record.get("projector") or config.get("mm_projector_type"),
        "conversation template": record.get("template") or config.get("conversation_template"),
    }
    lines = ["---", data.to_yaml().strip(), "---", "", f"# {_TITLES[kind]}", ""]
    lines += _table(("part", ""), parts)
    # What holds no language model is loaded on one.
    loader = _LOADERS[library].format(base="" if kind == "full" else ', model_base="its base"')
    lines += ["## Load it", "", f"```python\n{loader}```", ""]
    lines += _section("Training data", ("file", "SHA-256"), record.get("data"))
    lines += _section("Recipe", ("flag", "value"), record.get("recipe"))
    lines += _section("Versions in training", ("library", "version"), record.get("versions"))
    lines += _score_lines(scores)
    with atomic_write(folder / "README.md") as stream:
        stream.write("\n".join(lines))
    if record:
        write_json(folder / RUN_FILE, record)


def _section(title: str, header: tuple[str, str], values: object) -> list[str]:
    return [f"## {title}", "", *_table(header, values)] if isinstance(values, dict) and values else []


def _table(header: tuple[str, ...], values: JsonObject) -> list[str]:
    """Return a table of the values that are known."""
    known = {name: value for name, value in values.items() if value not in (None, "", [])}
    return [*_rows(header, [(_cell(name), _cell(value)) for name, value in known.items()]), ""]


def _score_lines(runs: Sequence[Scores]) -> Iterator[str]:
    """Yield a table of the scores that papers quote."""
    if not runs:
        return
    rows, warnings = [], []
    for scores in runs:
        name = " ".join(filter(None, (scores.benchmark, scores.split)))
        rows += [
            (
                *(name, score.name, format_score(scores, score), format_interval(score.low, score.high)),
                *(score.count, scores.judge or "-", scores.model_id or "-"),
            )
            for score in scores.scores
            if score.quoted
        ]
        warnings += [f"{name}: {warning}" for warning in scores.warnings]
    yield from ("## Scores", "")
    yield from _rows(("benchmark", "score", "value", "95 % interval", "questions", "judge", "model"), rows)
    yield ""
    yield from (f"* ! {escape_markdown(warning)}" for warning in warnings)


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *([escape_markdown(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(value: object) -> str:
    return ", ".join(map(_cell, value)) if isinstance(value, list) else without_folders(str(value))


def without_folders(text: str) -> str:
    """Return a text as it is, but of a path of this machine only the last part."""
    is_here = text.startswith("~") or Path(text).is_absolute()
    return (Path(text).name if is_here else "") or text
