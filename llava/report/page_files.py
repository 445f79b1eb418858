"""Fill the pages in `page/`: HTML with places such as %%DATA%%, and their style and script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files

_FOLDER = files("llava.report") / "page"


def fill_page(name: str, parts: Mapping[str, str]) -> str:
    """Return the page called `name`.

    Its style and script are put in, and their hashes for the page's Content-Security-Policy.

    Args:
        name: The name of the page's files, without suffix.
        parts: What to put at the page's other places: HTML in which nothing is left to escape.
    """
    parts = dict(parts)
    for place, kind in {"STYLE": "css", "SCRIPT": "js"}.items():
        file = _FOLDER / f"{name}.{kind}"
        if file.is_file():
            parts[place] = file.read_text(encoding="utf-8")
            parts[f"{place}_HASH"] = _csp_hash(parts[place])
    # Split first: what a part holds must not be taken for a place of the template.
    pieces = (_FOLDER / f"{name}.html").read_text(encoding="utf-8").split("%%")
    return "".join(parts[piece] if index % 2 else piece for index, piece in enumerate(pieces))


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
