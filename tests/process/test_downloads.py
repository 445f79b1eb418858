"""`llava download` against a server on this machine that cuts connections, and what `llava doctor` counts."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llava import benchmarks, doctor
from llava.layout import catalog, download, fetching
from llava.layout.catalog import DATA_SETS, DataSet, Remote
from llava.layout.unpacking import format_bytes, unpack_zip
from support.errors import raises_code

BLOCK = 1 << 16


class Server(ThreadingHTTPServer):
    """Serves `files`, at most `cut` bytes a connection; `sent` lists the ranges that were asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.can_resume = True
        self.sent: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer()

    def _answer(self, *, is_head: bool = False) -> None:
        # The hub's files are asked for at OWNER/NAME/resolve/main/FILE.
        content = self.server.files.get(self.path.rpartition("/")[2])
        if content is None:
            self.send_error(404)
            return
        digest = hashlib.sha256(content).hexdigest()
        asked = self.headers.get("Range")
        is_same = self.headers.get("If-Range") in (None, f'"{digest}"')
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked and is_same else 0
        start = start if self.server.can_resume else 0
        if not is_head:
            self.server.sent.append(asked)
        self.send_response(416 if start and start >= len(content) else 206 if start else 200)
        if start >= len(content):
            self.send_header("Content-Range", f"bytes */{len(content)}")
        elif start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{digest}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(max(0, len(content) - start)))
        self.end_headers()
        if not is_head:
            self.wfile.write(content[start:][: self.server.cut])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("LLAVA_MIRRORS", f"http://other/=http://none/ https://data.test/={running.url}")
        monkeypatch.setenv("HF_ENDPOINT", running.url.rstrip("/"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(fetching, "_LONGEST_WAIT_S", 0.0)
        yield running
        running.shutdown()


def zipped(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


PHOTOS = zipped(
    **{"photos/1.jpg": os.urandom(3 * BLOCK), "photos/2.jpg": b"2", "__MACOSX/photos/._1.jpg": b""}
)
ARCHIVE = Remote("https://data.test/photos.zip", "coco/photos", "*.jpg", 2)


def command(monkeypatch: pytest.MonkeyPatch, root: Path, remotes: tuple[Remote, ...], *flags: str) -> None:
    """Run `llava download photos`, where `photos` is these files."""
    monkeypatch.setattr(catalog, "DATA_SETS", (DataSet("photos", "train", remotes),))
    monkeypatch.setattr(sys, "argv", ["llava download", "photos", "--root", str(root), *flags])
    download.main()


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_cut_connections_are_gone_on_with_and_a_second_run_fetches_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["photos.zip"], server.cut = PHOTOS, BLOCK
    published = replace(ARCHIVE, size=len(PHOTOS), sha256=hashlib.sha256(PHOTOS).hexdigest())
    linked = replace(published, link="eval/street/images")
    command(monkeypatch, tmp_path, (published, linked))
    assert server.sent[0] is None
    assert server.sent[1:] == [f"bytes={BLOCK * number}-" for number in range(1, len(server.sent))]
    assert len(server.sent) == -(-len(PHOTOS) // BLOCK)
    assert files_in(tmp_path / "coco/photos") == ["1.jpg", "2.jpg"]
    assert files_in(tmp_path / "eval/street/images/") == ["1.jpg", "2.jpg"]
    assert f"{format_bytes(len(PHOTOS))} to fetch" in capsys.readouterr().out
    server.sent.clear()
    command(monkeypatch, tmp_path, (published, linked))
    assert not server.sent
    assert files_in(tmp_path / ".downloads") == ["lock", "unpacked.json"]
    # A folder that lost an image is not complete.
    (tmp_path / "coco/photos/2.jpg").unlink()
    command(monkeypatch, tmp_path, (published,))
    assert files_in(tmp_path / "coco/photos") == ["1.jpg", "2.jpg"]


def test_a_run_that_gives_up_keeps_what_came_for_the_next(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["photos.zip"], server.cut = PHOTOS, 0
    with raises_code("download-failed"):
        command(monkeypatch, tmp_path, (ARCHIVE,))
    assert len(server.sent) == fetching.RETRIES
    server.cut = BLOCK
    with pytest.MonkeyPatch.context() as interrupted:
        interrupted.setattr(fetching, "_find_difference", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command(monkeypatch, tmp_path, (ARCHIVE,))
    server.sent.clear()
    command(monkeypatch, tmp_path, (ARCHIVE,))
    assert server.sent == [f"bytes={len(PHOTOS)}-"]  # all of it was there
    assert files_in(tmp_path / "coco/photos") == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize("can_resume", [True, False])
def test_a_file_that_changed_at_its_source_is_fetched_anew(
    can_resume: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["list.json"], server.cut, server.can_resume = b"old" * BLOCK, 0, can_resume
    remote = Remote("https://data.test/list.json", "lists/list.json")
    server.cut = BLOCK
    monkeypatch.setattr(fetching, "RETRIES", 0)
    with raises_code("download-failed"):
        command(monkeypatch, tmp_path, (remote,))
    server.files["list.json"], server.cut = b"new" * BLOCK, None
    command(monkeypatch, tmp_path, (remote,))
    assert (tmp_path / "lists/list.json").read_bytes() == b"new" * BLOCK


@pytest.mark.parametrize(
    ("content", "changes", "code"),
    [
        (PHOTOS, {"sha256": "0" * 64}, "damaged-download"),
        (PHOTOS, {"size": 7}, "damaged-download"),
        (b"<html>log in</html>", {}, "damaged-archive"),
        (PHOTOS[:-40], {}, "damaged-archive"),
        (PHOTOS.replace(b"photos/2.jpg", b"../../../2.x"), {}, "unsafe-archive"),
        (zipped(**{"readme.txt": b""}), {}, "unexpected-archive"),
        (PHOTOS, {"url": "https://data.test/gone.zip"}, "download-refused"),
        (PHOTOS, {"size": 1 << 60}, "disk-full"),
    ],
)
def test_what_is_not_as_published_never_reaches_the_data(
    content: bytes,
    changes: dict[str, object],
    code: str,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.files["photos.zip"] = content
    with raises_code(code):
        command(monkeypatch, tmp_path / "data", (replace(ARCHIVE, **changes),))  # type: ignore[arg-type]
    assert not [name for name in files_in(tmp_path) if name.endswith((".jpg", ".x", ".zip"))]


def test_a_file_of_the_hub_is_resumed_and_checked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["mix.json"], server.cut = b"[]" * BLOCK, BLOCK
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", BLOCK // 4)
    remote = Remote(f"{catalog.HUB}some/data/mix.json", "mix.json")
    command(monkeypatch, tmp_path, (remote,))
    assert (tmp_path / "mix.json").read_bytes() == b"[]" * BLOCK
    assert server.sent == [None, f"bytes={BLOCK}-"]
    server.cut = None
    monkeypatch.setattr(fetching, "_hub_facts", lambda _: (2 * BLOCK, "0" * 64))
    with raises_code("damaged-download"):
        command(monkeypatch, tmp_path / "again", (remote,))
    with raises_code("download-failed"):
        command(monkeypatch, tmp_path, (replace(remote, url=f"{catalog.HUB}some/data/gone", into="gone"),))


def test_a_second_download_waits_for_the_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    server.files["photos.zip"] = PHOTOS
    (tmp_path / ".downloads").mkdir()
    with FileLock(tmp_path / ".downloads/lock"):
        second = threading.Thread(target=download.download, args=((ARCHIVE,), tmp_path))
        second.start()
        second.join(timeout=0.3)
        assert second.is_alive()
        assert not server.sent
    second.join(timeout=30)
    assert files_in(tmp_path / "coco/photos") == ["1.jpg", "2.jpg"]


def test_unpacking_replaces_files_of_the_same_name_and_keeps_others(tmp_path: Path) -> None:
    (tmp_path / "photos.zip").write_bytes(PHOTOS)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/2.jpg").write_bytes(b"old")
    (tmp_path / "photos/3.jpg").write_bytes(b"3")
    unpack_zip(tmp_path / "photos.zip", tmp_path / "photos")
    assert (tmp_path / "photos/2.jpg").read_bytes() == b"2"
    unpack_zip(tmp_path / "photos.zip", tmp_path / "one", only="2.jpg")
    assert files_in(tmp_path) == ["one/2.jpg", "photos.zip", "photos/1.jpg", "photos/2.jpg", "photos/3.jpg"]


def touch(remote: Remote, root: Path) -> None:
    path = root / (remote.link or remote.into) / remote.proof.replace("*", "1")
    if remote.url.endswith("llava-bench-in-the-wild/"):
        for name in ("questions.jsonl", "context.jsonl", "answers_gpt4.jsonl"):
            touch(replace(remote, url="", proof=name), root)
    if remote.into == "eval/mm-vet":
        touch(replace(remote, into="eval/mm-vet/mm-vet.json", proof=""), root)
    if remote.into == "eval/vqav2":
        names = (f"v2_OpenEnded_mscoco_{split}_questions.json" for split in ("test2015", "test-dev2015"))
        for name in names:
            touch(replace(remote, into=f"eval/vqav2/{name}", proof=""), root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_every_benchmark_has_all_that_it_needs_once_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    by_name = {data.name: data for data in DATA_SETS}
    assert set(benchmarks.names()) <= set(by_name)
    monkeypatch.setattr(sys, "argv", ["llava doctor", "--data", str(tmp_path)])
    monkeypatch.setattr(doctor, "_devices", list)  # it imports torch
    doctor.main()
    before = capsys.readouterr().out
    assert "llava download mix665k dataengine coco" in before
    for name in benchmarks.names():
        assert doctor.benchmark_lacks(name, tmp_path)
        for remote in by_name[name].remotes:
            touch(remote, tmp_path)
        assert doctor.benchmark_lacks(name, tmp_path) == []
    (tmp_path / "coco/train2017").mkdir(parents=True)
    (tmp_path / "coco/train2017/1.jpg").touch()
    doctor.main()
    after = capsys.readouterr().out
    assert "1 of 118,287" in after
    assert "llava eval lacks" in before
    assert "llava eval lacks" not in after


def test_what_must_be_got_by_hand_is_refused_with_its_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["llava download", "mme", "--root", str(tmp_path)])
    with raises_code("not-downloadable"):
        download.main()
    with raises_code("unknown-data-set"):
        catalog.select(["nonsense"])
    monkeypatch.setenv("LLAVA_MIRRORS", "http://a")
    with raises_code("bad-mirror"):
        fetching.mirrored("http://a/b")


def test_the_command_needs_no_torch() -> None:
    code = "import sys; import llava.layout.download, llava.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
