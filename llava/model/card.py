"""Write a model card: `README.md` with the front matter that the Hugging Face Hub reads.

It says only what is on disk: the run's `llava_run.json`, the config, and the `metrics.json` files that are
named. Folders of this machine are left out of paths. The licence is left to the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from llava.files import atomic_write, write_json
from llava.model.loading.checkpoint import read_config
from llava.model.loading.locate import find_hub_id
from llava.model.loading.run_record import RUN_FILE, read_run_record
from llava.model.loading.source import Source
from llava.schema import JsonObject
from llava.scoring.markup import escape_markdown
from llava.scoring.metrics import format_interval, format_score, read_scores

_LOADERS = {
    "llava": """\
from llava import load

model = load("this folder, or its name on the hub")
print(model.answer([("photo.jpg", "What is unusual here?")]))
""",
    "transformers": """\
from transformers import AutoProcessor, LlavaForConditionalGeneration

name = "this folder, or its name on the hub"
model = LlavaForConditionalGeneration.from_pretrained(name)
processor = AutoProcessor.from_pretrained(name)
""",
}


def write_card(folder: Path, source: Source, scores: Sequence[Path], *, library: str) -> None:
    """Write `README.md`, and beside it the `llava_run.json` of the run, if it has one.

    Args:
        folder: A model's new folder.
        source: What the model was made of.
        scores: The metrics.json files to show, or their folders.
        library: Which library loads the folder: llava or transformers.

    Raises:
        DataError: A metrics.json is missing or damaged.
    """
    record, config = read_run_record(source.folder), read_config(source.config_folder)
    base = record.get("base")
    named = base.get("name") if isinstance(base, dict) else source.base_name
    data = ModelCardData(pipeline_tag="image-text-to-text", base_model=named and find_hub_id(str(named)))
    if library == "transformers":  # the hub knows no library llava
        data.library_name = library
    parts = {
        "base": named,
        "vision tower": record.get("vision_tower") or config.get("mm_vision_tower"),
        "projector": record.get("projector") or config.get("mm_projector_type"),
        "conversation template": record.get("template") or config.get("conversation_template"),
    }
    lines = ["---", data.to_yaml().strip(), "---", "", "# LLaVA-1.5 model", ""]
    lines += _table(("part", ""), parts)
    lines += ["## Load it", "", f"```python\n{_LOADERS[library]}```", ""]
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
    return [*_rows(header, [(_public(name), _public(value)) for name, value in known.items()]), ""]


def _score_lines(paths: Sequence[Path]) -> Iterator[str]:
    """Yield a table of the scores that papers quote."""
    if not paths:
        return
    rows, warnings = [], []
    for path in paths:
        scores = read_scores(path)
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


def _public(value: object) -> str:
    """Return a value as text, without the folders of a path of this machine."""
    if isinstance(value, list):
        return ", ".join(map(_public, value))
    text = str(value)
    return Path(text).name if Path(text).is_absolute() else text
