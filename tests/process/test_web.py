"""Test `llava web`: the page in a browser, with a real model and a scripted one, and what it serves."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

import llava
from llava.files import read_jsonl
from llava.infer.engine.generate import IsStopped
from llava.infer.engine.load import load
from llava.infer.engine.requests import Generation, ModelChoice
from llava.serve import web
from llava.serve.dialogue import Talker, TalkTurn
from llava.serve.votes import VoteLog
from support.browser import browser_page
from support.errors import raises_code

if TYPE_CHECKING:
    from playwright.sync_api import Page

MODEL = "playground/demo/model"
HOSTILE = (
    "<img src=x onerror=alert(1)><script>alert(2)</script></textarea> **bold** ![](http://127.0.0.1:9/a.png)"
    " [link](javascript:alert(3)) $x$ {{ 7*7 }}\n<b>second</b> line"
)


class Scripted(Talker):
    """Says something hostile, or talks until it is stopped."""

    def __init__(self) -> None:
        self.name = "<b>scripted</b>"
        self.finished = 0

    def wait_for(self, answers: int) -> None:
        """Wait until it has given so many answers, whole or stopped."""
        deadline = time.monotonic() + 60
        while self.finished < answers and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.finished == answers

    def answer(
        self, talk: Sequence[TalkTurn], generation: Generation, is_stopped: IsStopped = lambda: False
    ) -> Generator[str, None, None]:
        talk[-1].answer = ""
        number = 0
        while not is_stopped():
            is_endless = talk[-1].question == "Go on."
            piece = f"word {number} " if is_endless else HOSTILE
            talk[-1].answer += piece
            yield piece
            if not is_endless:
                break
            number += 1
            time.sleep(0.03)
        self.finished += 1


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the votes on the served page."""
    return tmp_path_factory.mktemp("votes")


@pytest.fixture(scope="module")
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def served(scripted: Scripted, votes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a page with the demo's model on the left and the scripted one on the right; yield its address."""
    pytest.importorskip("gradio", reason="needs gradio: pip install '.[serve]'")
    from llava.serve.page import Page as WebPage

    folder = tmp_path_factory.mktemp("served")
    choice = ModelChoice(MODEL, name="model")
    page = WebPage(
        [Talker(load(choice), choice), scripted],
        folder=folder,
        initial=Generation(temperature=0, max_new_tokens=40),
        longest=100,
        votes=VoteLog(votes),
        examples=web.load_examples(web.EXAMPLES),
    )
    flags = web.make_parser().parse_args(["--model-path", "m", "--max-upload-mb", "1"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        with web.open_page(page, flags) as address:
            yield address


def ask(page: Page, question: str) -> None:
    page.fill("#question textarea", question)
    page.press("#question textarea", "Enter")


def add_image(page: Page, path: Path) -> None:
    page.set_input_files("#question input[type=file]", path)
    page.locator("#question .thumbnail-item").wait_for()


def answers(page: Page, side: int) -> list[str]:
    return page.locator(f"#chat-{side} [data-testid=bot]").all_inner_texts()


def wait_for_answers(page: Page, count: int) -> None:
    """Wait until the page has taken a question and both models have answered it."""
    page.wait_for_function(
        """count => [0, 1].every(side => {
            const said = document.querySelectorAll(`#chat-${side} [data-testid=bot]`);
            return said.length === count && !said[count - 1].innerText.includes("…");
        })""",
        arg=count,
    )


def click(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def expect_message(page: Page, text: str) -> None:
    toast = page.locator(".toast-body", has_text=text)
    toast.wait_for()
    toast.get_by_test_id("toast-close").click()
    toast.wait_for(state="detached")


def test_a_talk_with_two_models(served: str, scripted: Scripted, votes: Path) -> None:
    scene, question = web.load_examples(web.EXAMPLES)[0]
    asked_for: list[str] = []
    with browser_page() as page:
        page.on("request", lambda request: asked_for.append(request.url))
        page.goto(served)
        click(page, "Regenerate")
        expect_message(page, "there is no answer yet")
        page.get_by_text(question).first.click()
        page.locator("#question .thumbnail-item").wait_for()
        page.press("#question textarea", "Enter")
        wait_for_answers(page, 1)
        said = llava.load(MODEL).answer([(scene, question)], max_new_tokens=40)
        assert answers(page, 0) == said
        # All of it is shown as text: no tag, no link, no picture, no formula.
        assert answers(page, 1) == [HOSTILE]
        inside = page.locator("#chat-1 [data-testid=bot]").locator("img, a, b, strong, script, .katex")
        assert inside.count() == 0
        assert page.evaluate("document.querySelector('#chat-0 [data-testid=user] img').naturalWidth") == 96

        ask(page, "Go on.")
        page.locator("#chat-1", has_text="word 3").wait_for()
        page.fill("#question textarea", "What I type meanwhile stays.")
        click(page, "Both are good")
        expect_message(page, "still being written")
        click(page, "Stop")
        scripted.wait_for(answers=2)
        click(page, "Both are bad")
        expect_message(page, "the vote is kept")
        assert page.input_value("#question textarea") == "What I type meanwhile stays."
        click(page, "Both are good")
        expect_message(page, "a vote on these answers already")
        with page.expect_download() as download:
            click(page, "Download")
        saved = json.loads(Path(download.value.path()).read_text())
        assert saved["models"] == ["model", "<b>scripted</b>"]
        assert [turn["question"] for turn in saved["turns"]] == [question, "Go on."]
        assert saved["turns"][0]["answers"] == [*said, HOSTILE]
        stopped = saved["turns"][1]["answers"][1].strip()
        assert answers(page, 1) == [HOSTILE, stopped]
        assert stopped.startswith("word 0 word 1")
        ((_, vote),) = read_jsonl(votes / "votes.jsonl")
        assert vote["vote"] == "bad"
        assert {key: vote[key] for key in saved} == saved
        (image,) = vote["images"]
        assert (votes / image).read_bytes() == scene.read_bytes()

        click(page, "New conversation")
        page.wait_for_function("!document.querySelector('[data-testid=bot]')")
        ask(page, "What is it?")
        wait_for_answers(page, 1)
        click(page, "Regenerate")
        scripted.wait_for(answers=4)
        wait_for_answers(page, 1)
        assert page.get_by_role("button", name="Share").count() == 0
    # Neither fonts nor statistics: nothing leaves this machine.
    assert [url for url in asked_for if not url.startswith((served, "data:", "blob:"))] == []


def test_what_cannot_be_used_is_said_on_the_page(served: str, tmp_path: Path) -> None:
    (tmp_path / "<b>broken.png").write_text("no image")
    (tmp_path / "large.png").write_bytes(bytes(1_500_000))
    picture = io.BytesIO()
    Image.new("RGB", (30, 20), (200, 90, 20)).save(picture, "PNG")
    with browser_page() as page:
        page.goto(served)
        page.set_input_files("#question input[type=file]", tmp_path / "large.png")
        expect_message(page, "exceed the maximum allowed size")
        add_image(page, tmp_path / "<b>broken.png")
        ask(page, "What is it?")
        expect_message(page, "broken.png: cannot be read as an image")
        assert page.input_value("#question textarea") == "What is it?"
        page.locator("#question .thumbnail-item").hover()
        page.locator("#question .delete-button").click()
        ask(page, "   ")
        expect_message(page, "write a question first")
        # An image that is pasted.
        page.locator("#question textarea").evaluate(
            """async (box, data) => {
                const content = await (await fetch(`data:image/png;base64,${data}`)).blob();
                const clipboard = new DataTransfer();
                clipboard.items.add(new File([content], "pasted.png", {type: "image/png"}));
                box.dispatchEvent(new ClipboardEvent("paste", {clipboardData: clipboard, bubbles: true}));
            }""",
            base64.b64encode(picture.getvalue()).decode(),
        )
        page.locator("#question .thumbnail-item").wait_for()
        ask(page, "long " * 1500)
        expect_message(page, "shorten the question, or what was said before it")
        # The question is not lost.
        page.wait_for_function(
            "text => document.querySelector('#question textarea').value === text",
            arg=("long " * 1500).strip(),
        )
        page.locator("#question .thumbnail-item").wait_for()
        assert answers(page, 0) == []
        ask(page, "What is it?")
        wait_for_answers(page, 1)
        assert page.evaluate("document.querySelector('#chat-0 [data-testid=user] img').naturalWidth") == 30


def fetch(url: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(
        url, body, {name.replace("_", "-"): text for name, text in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def upload(url: str, content: bytes) -> tuple[int, bytes]:
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head + content + b"\r\n--x--\r\n"
    return fetch(f"{url}gradio_api/upload", body, Content_Type="multipart/form-data; boundary=x")


def submit(url: str, path: str, **settings: float) -> str:
    """Ask about a file as the page does; return all that the server says until the end."""
    config = json.loads(fetch(f"{url}config")[1])
    (asking,) = (one for one in config["dependencies"] if one["targets"][0][1] == "submit")
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    given = {"temperature": 0.0, "top_p": 0.7, "length": 4} | settings
    data = [None, {"text": "What is it?", "files": [file]}, *given.values()]
    event = {"data": data, "fn_index": asking["id"], "session_hash": f"s{time.time()}", "trigger_id": None}
    status, said = fetch(
        f"{url}gradio_api/queue/join", json.dumps(event).encode(), Content_Type="application/json"
    )
    if status != 200:
        return said.decode()
    return fetch(f"{url}gradio_api/queue/data?session_hash={event['session_hash']}")[1].decode()


def attack(url: str, folder: Path) -> None:
    """Try to get what the page must not give."""
    assert url.startswith("http://127.0.0.1:")
    for name in ("secret.png", "notes.txt"):
        for spelling in (f"{folder}/{name}", f"{folder}/served/../{name}", f"%2e%2e/{name}", name):
            for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/"):
                assert fetch(url + route + spelling)[0] in (400, 403, 404, 405)
    assert fetch(url, Host="evil.example")[0] == 400
    assert fetch(url, Host=f"localhost:{url.split(':')[2].strip('/')}")[0] == 200
    assert upload(url, bytes(1_100_000))[0] == 413
    picture = (folder / "secret.png").read_bytes()
    status, paths = upload(url, picture)
    assert status == 200
    (path,) = json.loads(paths)
    assert fetch(f"{url}gradio_api/file={path}") == (200, picture)
    assert '"success":true' in submit(url, path)
    # A file of this machine is not one that was uploaded; a setting beyond its slider is refused.
    for events in (submit(url, str(folder / "secret.png")), submit(url, path, length=10_000)):
        assert '"success":true' not in events


def test_the_command_serves_nothing_but_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="needs gradio: pip install '.[serve]'")
    Image.new("RGB", (30, 20), (200, 90, 20)).save(tmp_path / "secret.png")
    (tmp_path / "notes.txt").write_text("secret")
    addresses: list[str] = []

    class Screen(io.StringIO):
        """Attacks the page when its address is written, then presses Ctrl-C."""

        def write(self, text: str) -> int:
            if found := re.match(r"http://\S+", text):
                addresses.append(found[0])
                attack(found[0], tmp_path)
                signal.raise_signal(signal.SIGINT)
            return super().write(text)

    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(sys, "stdout", Screen())
    monkeypatch.setattr(sys, "argv", ["llava web", "--model-path", MODEL, "--max-upload-mb", "1"])
    with pytest.raises(KeyboardInterrupt):
        web.main()
    assert addresses
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(addresses[0], timeout=5)


def test_votes_cast_at_once_are_all_kept(tmp_path: Path) -> None:
    image = tmp_path / "a.PNG"
    image.write_bytes(b"picture")
    log = tmp_path / "votes/votes.jsonl"
    logs = [VoteLog(log.parent), VoteLog(log.parent)]
    log.write_text('{"vote": "tie"}\n{"vote": "le')  # a kill cut the second one short
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: logs[n % 2].add("left", {"turns": n}, [image]), range(40)))
    rows = [row for _, row in read_jsonl(log)]
    assert rows[0] == {"vote": "tie"}
    assert sorted(row["turns"] for row in rows[1:]) == list(range(40))
    assert {path.read_bytes() for path in (log.parent / "images").iterdir()} == {b"picture"}


@pytest.mark.parametrize(
    ("code", "flags"),
    [
        ("too-many-models", ["--model-path", "b", "--model-path", "c"]),
        ("out-of-range", ["--max-upload-mb", "0"]),
        ("out-of-range", ["--port", "70000"]),
        ("unknown-template", ["--conv-mode", "v9"]),
        ("conflicting-flags", ["--load-8bit", "--load-4bit"]),
        ("missing-file", ["--examples", "gone.jsonl"]),
        ("empty-question", ["--examples", "{}/empty.jsonl"]),
        ("bad-image-name", ["--examples", "{}/outside.jsonl"]),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_loaded(
    code: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.jsonl").write_text('{"image": "a.png", "text": " "}\n')
    (tmp_path / "outside.jsonl").write_text('{"image": "../a.png", "text": "?"}\n')
    argv = ["llava web", "--model-path", "a", *(flag.format(tmp_path) for flag in flags)]
    monkeypatch.setattr(sys, "argv", argv)
    with raises_code(code):
        web.main()
