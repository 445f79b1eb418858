"""Make the pages of rounds, HTML and Markdown, from the numbers in summary.json.

Names and texts may come from a model. HTML is escaped by jinja2; in Markdown every value is escaped unless
this module made it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import SettingsError
from llava.files import atomic_write
from llava.schema import JsonObject
from llava.scoring.markup import escape_markdown, printable
from llava.scoring.metrics import format_interval

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
PAGES = ("html", "md")
# Of a text that a model wrote, in a table.
_LONGEST = 160


def write_pages(stem: Path, template: str, values: JsonObject) -> list[Path]:
    """Render the templates `template`.html.jinja and `template`.md.jinja to `stem`.html and `stem`.md.

    Args:
        stem: The path of both pages, without a suffix.
        template: The templates' name, without suffixes.
        values: The templates' variables, all that they use.

    Returns:
        The paths of the pages.

    Raises:
        SettingsError: jinja2 is not installed.
    """
    paths = []
    for kind in PAGES:
        path = stem.with_name(f"{stem.name}.{kind}")
        text = _environment(kind).get_template(f"{template}.{kind}.jinja").render(values)
        with atomic_write(path) as stream:
            stream.write(text)
        paths.append(path)
    return paths


def _environment(kind: str) -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise SettingsError(
            f"reports need `pip install '.[engine]'` ({error})", code="missing-package"
        ) from error

    def shown(value: object) -> object:
        if isinstance(value, Markup):
            return value
        text = printable(str(value))
        return text if kind == "html" else Markup(escape_markdown(text))

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # What these return holds digits and signs only.
    for name, show in (("gain", show_gain), ("score", show_score), ("dollars", show_dollars), ("p", show_p)):
        environment.filters[name] = lambda value, show=show: Markup(show(value))
    environment.filters["short"] = shorten
    return environment


def shorten(value: object) -> str:
    """Return a text on one line, cut to what a table holds."""
    text = " ".join(str(value).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def show_gain(row: JsonObject | None) -> str:
    """Format a gain with its interval, and `*` if that excludes 0."""
    if row is None:
        return "-"
    mark = " *" if row.get("clear") else ""
    return f"{row['value']:+.2f} {format_interval(row['low'], row['high'])}{mark}"


def show_score(row: JsonObject) -> str:
    """Format a score with its interval."""
    return "-" if row["score"] is None else f"{row['score']:.2f} {format_interval(row['low'], row['high'])}"


def show_dollars(value: float | JsonObject | None) -> str:
    """Format dollars, with an interval if there is one."""
    if isinstance(value, dict):
        return f"${value['value']:,.2f} [{value['low']:,.2f}, {value['high']:,.2f}]"
    return "not known" if value is None else f"${value:,.2f}"


def show_p(value: float) -> str:
    """Format a p-value."""
    return f"{value:.3f}" if value >= 0.001 else "&lt; 0.001"
