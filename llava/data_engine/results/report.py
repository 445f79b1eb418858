"""Write the pages of all rounds and `summary.json`: `llava engine report rounds`."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice
from pathlib import Path

from llava.data_engine.loop.round import REJECTED
from llava.data_engine.results.final import look_at_frozen, read_final
from llava.data_engine.results.pages import show_gain, write_pages
from llava.data_engine.results.plot import plot_gains
from llava.data_engine.results.summary import GUIDED, SUMMARY_FILE, summarize_rounds
from llava.files import read_jsonl, write_json
from llava.schema import JsonObject

PAGE = "report"
# Examples of each rule's rejections on a round's page.
_EXAMPLES = 2
# A large round has many more rejections than its page shows.
_LOOKED_AT = 20_000


def report_rounds(rounds: Path, *, final: bool = False) -> str:
    """Write `rounds`/summary.json, a page per round and one of all rounds; return a summary in a few lines.

    Args:
        rounds: The folder of all rounds.
        final: Also score the last models on the frozen part, the questions kept for one last test. The result
            is stored: a later call with the same models reports it again.

    Raises:
        DataError: There is no split or no scored round, or a file is missing, damaged or of other questions.
        SettingsError: jinja2 is not installed; or with `final`, the split has no frozen part, or other models
            were scored on it before.
    """
    summary = summarize_rounds(rounds)
    summary["final"] = look_at_frozen(rounds) if final else read_final(rounds)
    write_json(rounds / SUMMARY_FILE, summary)
    for entry in summary["rounds"]:
        for arm, row in entry["arms"].items():
            folder = rounds / row["folder"]
            values = {"summary": summary, "entry": entry, "arm": arm, "row": row}
            write_pages(folder / PAGE, "round", values | {"examples": _examples(folder)})
    plot = plot_gains(summary["rounds"])
    pages = write_pages(rounds / PAGE, "rounds", {"summary": summary, "plot": plot})
    return "\n".join([*_lines(summary), f"report: {', '.join(map(str, pages))}"])


def _examples(folder: Path) -> dict[str, list[JsonObject]]:
    """Return the first rejections of each rule, of those that a round begins with."""
    found: dict[str, list[JsonObject]] = defaultdict(list)
    rows = read_jsonl(folder / REJECTED) if (folder / REJECTED).is_file() else ()
    for _, row in islice(rows, _LOOKED_AT):
        examples = found[str(row.get("rule"))]
        if len(examples) < _EXAMPLES:
            record = row.get("record")
            text = record.get("instruction") if isinstance(record, dict) else record
            examples.append({"detail": str(row.get("detail", "")), "text": str(text or "")})
    return dict(found)


def _lines(summary: JsonObject) -> list[str]:
    lines = []
    for entry in summary["rounds"]:
        for arm, row in entry["arms"].items():
            if row["vs_base"] is None:
                lines.append(f"round {entry['round']} {arm}: not scored yet")
                continue
            against = [f"{show_gain(row['vs_base'])} on the base"]
            if arm == GUIDED:
                others = [other for other in entry["arms"] if row.get(f"vs_{other}")]
                against += [f"{show_gain(row[f'vs_{other}'])} on {other}" for other in others]
            lines.append(f"round {entry['round']} {arm}: {row['score']:.2f}, {', '.join(against)}")
    for arm, row in (summary["final"] or {"arms": {}})["arms"].items():
        lines.append(f"frozen part, {row['folder']} {arm}: {show_gain(row['vs_base'])} on the base")
    stop = summary["stop"]
    return [*lines, f"{stop['verdict']}: {stop['reason']}", *summary["notes"]]
