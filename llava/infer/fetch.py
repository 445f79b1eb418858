"""An image named on a command line: a file, or something on the web."""

from __future__ import annotations

import base64
from pathlib import Path

from llava.errors import DataError
from llava.infer.engine.requests import ImageFile, ImageSource, ImageText

_TIMEOUT_S = 30


def resolve_image(name: str) -> ImageSource:
    """The image that `name` says: a path, or an http(s) address, which is downloaded.

    Raises:
        DataError: There is no such file, or the address gives nothing.
    """
    if not name.startswith(("http://", "https://")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise DataError(f"{path}: no such image file")
        return ImageFile(path)
    import requests

    try:
        response = requests.get(name, timeout=_TIMEOUT_S)
        response.raise_for_status()
    except requests.RequestException as error:
        raise DataError(f"{name}: cannot be downloaded ({error})") from error
    return ImageText(base64.b64encode(response.content).decode())
