"""Models named by hub id, downloaded from a small hub server on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llava.errors import CheckpointError
from llava.model.loading.locate import TRAINING_FILES
from llava.model.loading.run_record import RUN_FILE
from llava.model.push import make_repo, push_folder
from llava.train.train import train
from support import tiny_checkpoints as tiny
from support.errors import raises_code
from support.training_processes import equal_bits, free_port, recorded_flags

WITH_PATHS = {"config.json", "adapter_config.json"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves the folders `root/OWNER/NAME` as the hub serves models; `downloaded` lists the files sent.

    Who has the token "writer" may make folders and upload files to them.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.downloaded: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        _, kind, *rest = self.path.split("?")[0].strip("/").split("/")
        folder = self.server.root.joinpath(*rest[:2])
        answer: dict[str, object] = {"errors": [], "warnings": []}
        if kind != "validate-yaml" and self.headers.get("Authorization") != "Bearer writer":
            return self._refuse(403, "this token may only read")
        if kind == "repos":
            made = json.loads(body)
            repo = f"{made['organization']}/{made['name']}"
            (self.server.root / repo).mkdir(parents=True, exist_ok=True)
            answer = {"url": f"{self.server.url}/{repo}"}
        elif kind == "models" and not folder.is_dir():
            return self._refuse(404, "Repository not found", "RepoNotFound")
        elif rest[2:3] == ["preupload"]:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            answer = {"files": [{**file, "shouldIgnore": False} for file in files]}
        elif rest[2:3] == ["commit"]:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    path = folder / line["value"]["path"]
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(base64.b64decode(line["value"]["content"]))
            answer = {"commitUrl": f"{self.server.url}/{'/'.join(rest[:2])}/commit/{COMMIT}"}
            answer |= {"commitOid": COMMIT, "success": True}
        return self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"}, True)

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        self.send_response(status)
        for name, value in {"X-Error-Code": code, "X-Error-Message": message, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, *, with_body: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and (folder := self.server.root / parts[2] / parts[3]).is_dir():
            files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            info = {
                "id": "/".join(parts[2:4]),
                "sha": COMMIT,
                "siblings": files,
                "private": False,
                "tags": [],
            }
            self._send(json.dumps(info).encode(), {"Content-Type": "application/json"}, with_body)
        elif (
            parts[2:3] == ["resolve"]
            and (path := self.server.root.joinpath(*parts[:2], *parts[4:])).is_file()
        ):
            content = path.read_bytes()
            if with_body:
                self.server.downloaded.append(path.name)
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(content, headers, with_body)
        else:
            self._refuse(404, "Repository not found", "RepoNotFound")

    def _send(self, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Start a hub whose models are the folders under tmp_path/hub."""
    server = Hub(tmp_path / "hub")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


LOAD = """
from llava.model.builder import load_pretrained_model
tokenizer, model, processor, context = load_pretrained_model(path, device="cpu", dtype="float32")
print("loaded", type(model).__name__, len(tokenizer), processor is not None, context)
"""
LOCATE = """
from llava.model.loading.locate import locate
print(sorted(file.name for file in locate(path).iterdir()))
"""

TRAIN = """
import json
from llava.train.train import train
train(argv=json.loads(path))
"""


def run_in_a_process(
    hub: Hub, home: Path, code: str, path: str, *, offline: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `code` as a command in a new process that knows only this hub."""
    body = "".join(f"    {line}\n" for line in code.strip().splitlines())
    script = f"from llava.command import run\ndef main():\n    path = {path!r}\n{body}run(main)\n"
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
    }
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    environment["HF_TOKEN"] = "writer"
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )


def test_an_adapter_its_base_and_its_tower_are_downloaded(golden: Path, hub: Hub, tmp_path: Path) -> None:
    adapter = tiny.adapter(hub.root / "team/llava-lora", golden, suffix=".bin", named_base="team/vicuna")
    (adapter / "config.json").write_text(
        json.dumps(tiny.fields(adapter / "config.json") | {"mm_vision_tower": "openai/clip"}),
        encoding="utf-8",
    )
    (adapter / "training_args.bin").write_bytes(b"never downloaded")
    for source, name in ((tiny.LANGUAGE, "team/vicuna"), (tiny.TOWER, "openai/clip")):
        (hub.root / name).parent.mkdir(parents=True, exist_ok=True)
        (hub.root / name).symlink_to(golden / source)
    first = run_in_a_process(hub, tmp_path / "home", LOAD, "team/llava-lora")
    assert first.stdout == "loaded LlavaLlamaForCausalLM 2048 True 4096\n", first.stderr
    assert "team/vicuna" in first.stderr
    assert "training_args.bin" not in hub.downloaded
    assert hub.downloaded.count("model.safetensors") == 2
    # With everything in the cache, no hub is needed.
    again = run_in_a_process(hub, tmp_path / "home", LOAD, "team/llava-lora", offline=True)
    assert again.stdout == first.stdout, again.stderr


def test_an_adapter_from_the_hub_can_be_trained_further(
    golden: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(golden)  # the recorded flags name files from there
    given = tiny.adapter(hub.root / "team/llava-lora", golden, prefix="base_model.model.")
    at_0 = {"--init_adapter": "team/llava-lora", "--pretrain_mm_mlp_adapter": "", "--max_steps": "1"}
    # More than 0, as is required, and too little to change a weight.
    at_0 |= {"--learning_rate": "1e-60", "--mm_projector_lr": "1e-60"}
    at_0 |= {"--output_dir": str(tmp_path / "out"), "--push_to_hub": "True", "--hub_model_id": "team/more"}
    argv = [*recorded_flags(golden, "lora"), *(word for pair in at_0.items() for word in pair)]
    result = run_in_a_process(hub, tmp_path / "home", TRAIN, json.dumps(argv))
    assert result.returncode == 0, result.stderr[-3000:]
    assert {"adapter_model.safetensors", "non_lora_trainables.bin"} <= set(hub.downloaded)
    assert equal_bits(tmp_path / "out", given)
    card = (tmp_path / "out/README.md").read_text()
    assert "# LLaVA-1.5 adapter" in card
    assert "train.json | " in card
    pushed = {path.name: path.read_text(errors="replace") for path in (hub.root / "team/more").iterdir()}
    assert equal_bits(hub.root / "team/more", given)
    assert pushed["README.md"] == card
    assert pushed.keys().isdisjoint(TRAINING_FILES)
    assert not any(str(place) in text for text in pushed.values() for place in (golden, tmp_path))


def test_weights_in_two_formats_are_downloaded_once(golden: Path, hub: Hub, tmp_path: Path) -> None:
    folder = tiny.self_trained(hub.root / "team/llava", golden)
    (folder / "pytorch_model.bin").write_bytes(b"the same again")
    result = run_in_a_process(hub, tmp_path / "home", LOCATE, "team/llava")
    assert "'model.safetensors', 'special_tokens_map.json', 'tokenizer.model'" in result.stdout, result.stderr
    assert "pytorch_model.bin" not in hub.downloaded


def test_a_model_that_the_hub_lacks_is_an_error_of_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.root.mkdir()
    unknown = run_in_a_process(hub, tmp_path / "home", LOCATE, "team/unknown")
    assert unknown.returncode == 2
    (error,) = [line for line in unknown.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: team/unknown: ")
    offline = run_in_a_process(hub, tmp_path / "home", LOCATE, "team/unknown", offline=True)
    assert offline.returncode == 2
    assert "cache" in offline.stderr


def test_a_model_is_pushed_without_the_state_of_its_training(
    golden: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "writer")
    caplog.set_level("DEBUG")
    run = tiny.adapter(tmp_path / "run", golden)
    wanted = {path.name for path in run.iterdir()} | {"README.md"}
    (run / "README.md").write_text("---\nlibrary_name: peft\n---\n")
    record = {"base": {"name": str(golden)}, "data": {"/a/x.json": "1", "/b/x.json": "2", "y.json": "3"}}
    (run / RUN_FILE).write_text(json.dumps(record))
    for name in ("checkpoint-1/adapter_config.json", "training_args.bin", "trainer_state.json", ".lock"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("{}")

    with raises_code("unknown-repository", CheckpointError):
        push_folder(run, "team/llava-lora")
    make_repo("team/llava-lora", private=True)
    make_repo("team/llava-lora")
    assert push_folder(run, "team/llava-lora").endswith(COMMIT)
    pushed = hub.root / "team/llava-lora"
    assert {path.name for path in pushed.iterdir()} == {*wanted, RUN_FILE}
    shared = {"base": {"name": golden.name}, "data": {"x.json": "1", "x.json (1)": "2", "y.json": "3"}}
    assert tiny.fields(pushed / RUN_FILE) == shared
    assert all((pushed / name).read_bytes() == (run / name).read_bytes() for name in wanted - WITH_PATHS)
    for name in WITH_PATHS & wanted:
        assert '"/' not in (pushed / name).read_text()

    with raises_code("bad-repository", CheckpointError):
        push_folder(run, "no/such/repo")
    with raises_code("missing-model", CheckpointError):
        push_folder(hub.root, "team/llava-lora")
    monkeypatch.setenv("HF_TOKEN", "reader")
    with raises_code("hub-refused", CheckpointError) as caught:
        push_folder(run, "team/llava-lora")
    assert "this token may only read" in str(caught.value)
    # Training asks before it reads a weight, here of a base that does not exist.
    flags = ["--push_to_hub", "True", "--hub_model_id", "team/new", "--model_name_or_path", "no/such-base"]
    monkeypatch.chdir(golden)
    with raises_code("hub-refused", CheckpointError):
        train(argv=[*recorded_flags(golden, "lora"), *flags, "--output_dir", str(tmp_path / "out")])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with raises_code("hub-unreachable", CheckpointError):
        make_repo("team/llava-lora")
    monkeypatch.setattr("llava.model.push.get_token", lambda: None)
    with raises_code("no-hub-token", CheckpointError):
        push_folder(run, "team/llava-lora")
    assert not any(token in caplog.text for token in ("Bearer", "writer", "reader"))
