"""Get one file from the web or the Hugging Face hub; what a cut connection left is gone on with.

The hub's files come by `huggingface_hub`, which resumes by itself. Addresses on the web are asked for the
bytes that are missing (HTTP's Range); a server that has another version by then (If-Range) sends all.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from llava.errors import DataError, SettingsError, one_line
from llava.layout.catalog import HUB, Remote
from llava.log import progress_bar

MIRRORS = "LLAVA_MIRRORS"
"""The setting of mirrors, FROM=TO pairs with spaces between: TO replaces FROM at the start of an address."""

RETRIES = 5
"""How often a download may be cut without a new byte."""

_CHUNK = 1 << 16
_TIMEOUT_S = 60
_LONGEST_WAIT_S = 30.0
_TRANSIENT = (408, 429)
_NOTHING_LEFT = 416  # HTTP: Range Not Satisfiable


def mirrored(url: str) -> str:
    """Return `url`, or its place at a mirror that the setting LLAVA_MIRRORS names.

    Raises:
        SettingsError: The setting is no list of FROM=TO.
    """
    for pair in os.environ.get(MIRRORS, "").split():
        start, is_pair, mirror = pair.partition("=")
        if not (start and is_pair and mirror):
            raise SettingsError(f"{MIRRORS}: found {pair!r}, wanted FROM=TO", code="bad-mirror")
        if url.startswith(start):
            return mirror + url.removeprefix(start)
    return url


def remote_size(remote: Remote) -> int | None:
    """Return the size of a file in bytes: as published, else as its server says, else None."""
    if remote.size is not None or remote.url.startswith(HUB):
        return remote.size if remote.size is not None else _hub_facts(remote)[0]
    import requests

    try:
        answer = requests.head(mirrored(remote.url), allow_redirects=True, timeout=_TIMEOUT_S)
    except requests.RequestException:
        return None  # getting it says why
    length = answer.headers.get("Content-Length", "") if answer.ok else ""
    return int(length) if length.isdecimal() else None


def fetch_remote(remote: Remote, work: Path) -> Path:
    """Return the complete, checked file (or folder, for all of a hub data set) in the folder `work`.

    Raises:
        DataError: The server refuses it or keeps cutting it, or its size or checksum is not as published.
    """
    name = f"{hashlib.sha256(remote.url.encode()).hexdigest()[:8]}-{remote.name}"
    if remote.url.startswith(HUB):
        path, size, digest = _fetch_from_hub(remote, work / name), *_hub_facts(remote)
    else:
        path, size, digest = work / name, remote.size, remote.sha256
        _fetch(mirrored(remote.url), path)
    problem = _find_difference(path, size, digest) if path.is_file() else None
    if problem:
        path.unlink()
        raise DataError(
            f"{remote.url}: {problem}; what came was removed. Run the same command again; if it comes "
            f"again, the source has changed",
            code="damaged-download",
        )
    return path


def _find_difference(path: Path, size: int | None, sha256: str | None) -> str | None:
    found = path.stat().st_size
    if size is not None and found != size:
        return f"got {found:,} bytes, wanted {size:,}"
    if sha256 is None:
        return None
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if digest == sha256 else f"its SHA-256 is {digest}, wanted {sha256}"


def _fetch(url: str, path: Path) -> None:
    """Download `url` to `path`, the rest of it if an earlier download was cut."""
    import requests

    failures = 0
    while True:
        before, reason = _size(path), "the connection was cut"
        try:
            if _fetch_rest(url, path):
                return
        except requests.RequestException as error:
            reason = one_line(error, 200)
        failures = 0 if _size(path) > before else failures + 1
        if failures >= RETRIES:
            raise DataError(
                f"{url}: {reason}; {_size(path):,} bytes are kept: the same command goes on with them",
                code="download-failed",
            )
        time.sleep(min(failures * failures, _LONGEST_WAIT_S))


def _fetch_rest(url: str, path: Path) -> bool:
    """Append what is missing of `path`; return whether it is complete, as far as the server says."""
    import requests

    have, version = _size(path), path.with_name(path.name + ".version")
    headers = {"Accept-Encoding": "identity"}
    if have and version.is_file():
        headers |= {"Range": f"bytes={have}-", "If-Range": version.read_text(encoding="utf-8")}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        if response.status_code == _NOTHING_LEFT:
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return True
            path.unlink()
            return False
        if 400 <= response.status_code < 500 and response.status_code not in _TRANSIENT:
            raise DataError(
                f"{url}: the server says {response.status_code} {response.reason}; {MIRRORS} names another",
                code="download-refused",
            )
        response.raise_for_status()
        is_rest = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if is_rest else 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        if not is_rest:
            version.write_text(_version(response.headers), encoding="utf-8")
        bar = progress_bar(name=path.name.partition("-")[2], total=total or 0, unit="B")
        with bar, path.open("ab" if is_rest else "wb") as stream:
            bar.update(have)
            for chunk in response.iter_content(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
    return total is None or _size(path) == total


def _version(headers: Mapping[str, str]) -> str:
    """Return what tells one version of a file from another; a weak ETag may not be used (RFC 9110)."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "none")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _hub_place(remote: Remote) -> tuple[str, str]:
    """Return the data set (OWNER/NAME) and the file in it."""
    owner, name, file = remote.url.removeprefix(HUB).split("/", 2)
    return f"{owner}/{name}", file


def _hub_facts(remote: Remote) -> tuple[int | None, str | None]:
    """Return the size and the SHA-256 that the hub gives for a file; None where it gives none."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    data, file = _hub_place(remote)
    if not file:
        return None, None
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        facts = get_hf_file_metadata(hf_hub_url(data, file, repo_type="dataset", endpoint=endpoint))
    except _hub_errors():
        return None, None  # getting it says why
    # The ETag of a large file is its SHA-256, that of a small one git's SHA-1.
    return facts.size, facts.etag if facts.etag and len(facts.etag) == 64 else None


def _hub_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    # The hub's errors extend those of its HTTP client, which is another library in some versions.
    return (OSError, *HfHubHTTPError.__bases__)


def _fetch_from_hub(remote: Remote, folder: Path) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    data, file = _hub_place(remote)
    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        if file:
            return Path(hf_hub_download(data, file, repo_type="dataset", local_dir=folder, endpoint=endpoint))
        return Path(snapshot_download(data, repo_type="dataset", local_dir=folder, endpoint=endpoint))
    except _hub_errors() as error:
        raise DataError(
            f"{remote.url}: {one_line(error, 300)}; what came is kept: the same command goes on with it",
            code="download-failed",
        ) from error
