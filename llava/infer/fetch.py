"""Resolve an image named on a command line: a file, or an address on the web."""

from __future__ import annotations

import base64
from pathlib import Path

from llava.errors import DataError
from llava.image_reading import require_image_file
from llava.infer.engine.requests import ImageFile, ImageSource, ImageText

_TIMEOUT_S = 30


def resolve_image(name: str) -> ImageSource:
    """Return the image at a path or an http(s) address. The latter is downloaded.

    Raises:
        DataError: The file does not exist, or the download fails.
    """
    if not name.startswith(("http://", "https://")):
        path = Path(name).expanduser()
        require_image_file(path)
        return ImageFile(path)
    import requests

    try:
        response = requests.get(name, timeout=_TIMEOUT_S)
        response.raise_for_status()
    except requests.RequestException as error:
        raise DataError(f"{name}: cannot be downloaded ({error})", code="download-failed") from error
    return ImageText(base64.b64encode(response.content).decode())
