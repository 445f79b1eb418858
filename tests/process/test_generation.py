"""`llava engine generate` against a real server on the loopback that fails in every way."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from llava.data_engine.__main__ import main
from llava.data_engine.generation.bodies import Sampling, read_requests
from llava.data_engine.generation.client import Server, read_wait
from llava.data_engine.generation.generate import RoundBudget, RoundOutcome, generate_round
from llava.data_engine.generation.ledger import Spending, open_ledger
from llava.data_engine.generation.prices import read_price
from llava.data_engine.loop.round import start_round
from llava.files import read_jsonl, write_jsonl
from support.chat_server import NONSENSE, ChatServer, Faults, completion, request_rows, text_of
from support.engine_kills import ANSWER_COST, PRICE, answer_all, kill_loop, start_process
from support.errors import raises_code

PRICES = """
[models.m]
input = 1.0
cached = 0.5
output = 2.0
batch = 0.5
image_tokens = 1000
date = "2026-11-27"
source = "https://example.org/prices"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A round of 30 requests."""
    write_jsonl(tmp_path / "rounds/1/requests.jsonl", request_rows(30))
    return tmp_path / "rounds/1"


async def no_sleep(_: float) -> None:
    await asyncio.sleep(0)


def ask(
    folder: Path, url: str, *, dollars: float | None = 100.0, sampling: Sampling | None = None, **server: Any
) -> tuple[RoundOutcome, Spending]:
    with open_ledger(folder.parent / "ledger.sqlite") as ledger:
        settings = Server(url, **{"timeout": 20, **server})
        budget = RoundBudget(folder.name, PRICE, dollars)
        outcome = generate_round(folder, ledger, settings, sampling or Sampling("m"), budget, sleep=no_sleep)
        return outcome, ledger.spending(folder.name)


def run_command(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["llava engine", "generate", *map(str, words)])
    main()


def spent(folder: Path) -> Spending:
    with open_ledger(folder.parent / "ledger.sqlite") as ledger:
        return ledger.spending(folder.name)


def responses(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for _, row in read_jsonl(folder / "responses.jsonl")}


def test_every_fault_is_met_and_no_answer_is_paid_for_twice(folder: Path) -> None:
    faults = Faults(busy=0.1, error=0.1, silent=0.05, cut=0.1, half=0.1, wrong=0.05, page=0.05, nonsense=0.1)
    with ChatServer(faults, seed=3) as server:
        outcome, spending = ask(folder, server.url, timeout=3.0, attempts=30)
        calls = sum(server.calls.values())
        again, _ = ask(folder, server.url)
        assert sum(server.calls.values()) == calls
    assert min(server.calls[kind] for kind in ("http-429", "http-500", "silent", "cut", "half", "wrong")) > 0
    assert (outcome.answered, outcome.failed, again.cached, again.answered) == (30, Counter(), 30, 0)
    assert set(server.charged.values()) == {1}
    assert spending.answered == pytest.approx(30 * ANSWER_COST)
    assert spending.unknown == server.broken.total() + server.calls["silent"]
    assert spending.refused == server.calls["http-429"] + server.calls["http-500"]
    rows = responses(folder)
    assert list(rows) == [f"r{number}" for number in range(30)]
    assert sum(row["text"] == NONSENSE for row in rows.values()) == server.calls["nonsense"]
    assert sum(row["attempts"] for row in rows.values()) == calls
    assert rows["r0"]["usage"] == {"prompt_tokens": 100, "completion_tokens": 50, "cached_tokens": 0}


@pytest.mark.parametrize("wanted", [3, 300])
def test_retry_after_is_obeyed_however_long(folder: Path, wanted: int) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    with (
        ChatServer(Faults(busy=0.3), seed=1, retry_after=str(wanted)) as server,
        open_ledger(folder.parent / "ledger.sqlite") as ledger,
    ):
        generate_round(
            folder, ledger, Server(server.url, attempts=50), Sampling("m"), RoundBudget("1"), sleep=sleep
        )
    assert len(waits) == server.calls["http-429"] > 3
    assert min(waits) >= wanted
    assert max(waits) < wanted + 20


def test_retry_after_may_be_a_date_or_rubbish() -> None:
    later = read_wait({"retry-after": formatdate(time.time() + 200, usegmt=True)})
    assert later is not None
    assert 190 < later <= 200
    assert read_wait({"retry-after": formatdate(0, usegmt=True)}) == 0
    for rubbish in ({}, {"retry-after": "soon"}, {"retry-after": "nan"}, {"retry-after": "inf"}):
        assert read_wait(rubbish) is None
    assert read_wait({"retry-after": "-3"}) == 0


def test_a_refused_request_is_counted_and_not_tried_again(folder: Path) -> None:
    def refuse(body: dict[str, Any]) -> tuple[int, str] | None:
        return (400, "your policy") if text_of(body).endswith(" 7.") else None

    with ChatServer(refuse=refuse) as server:
        outcome, spending = ask(folder, server.url)
    assert outcome.failed == {"http-400": 1}
    assert server.calls["http-400"] == 1
    assert (spending.refused, spending.perhaps) == (1, 0)
    assert len(responses(folder)) == 29


def test_a_key_that_is_refused_stops_the_run_and_is_shown_nowhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    key = "sk-very-secret-123"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    write_jsonl(folder / "requests.jsonl", request_rows(200))
    with ChatServer(refuse=lambda body: (401, f"wrong key {key}"), keep=True) as server:
        monkeypatch.setattr(
            "sys.argv", ["engine", "generate", str(folder), "--model", "m", "--base-url", server.url]
        )
        with raises_code("server-fails") as caught:
            main()
    assert f"Bearer {key}" in server.headers[0]
    assert server.calls["http-401"] < 60
    files = b"".join(path.read_bytes() for path in folder.parent.rglob("*") if path.is_file())
    assert b"wrong key KEY" in files
    assert key not in files.decode("utf-8", "replace") + "".join(capfd.readouterr()) + str(caught.value)


def test_a_key_that_no_header_can_carry_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\N{EN DASH}1")
    with raises_code("bad-key") as caught:
        run_command(monkeypatch, folder, "--model", "m", "--base-url", "http://127.0.0.1:9/v1")
    assert "sk-" not in str(caught.value)


def test_a_server_without_structured_output_is_asked_plainly(folder: Path) -> None:
    def refuse(body: dict[str, Any]) -> tuple[int, str] | None:
        return (400, "response_format is not supported") if "response_format" in body else None

    with ChatServer(refuse=refuse, keep=True) as server:
        outcome, _ = ask(folder, server.url, concurrency=4)
    assert (outcome.answered, outcome.failed) == (30, Counter())
    assert 1 <= server.calls["http-400"] <= 4
    with ChatServer() as other:
        assert ask(folder, other.url)[0].cached == 30
    assert not other.calls


def test_a_budget_is_never_passed(folder: Path) -> None:
    with ChatServer() as server:
        with raises_code("over-budget"):
            ask(folder, server.url, dollars=0.01)
        assert not server.calls
        # A call may cost $0.0023, and costs $0.0002.
        limit = Sampling("m", max_tokens=900)
        write_jsonl(folder / "requests.jsonl", request_rows(3))
        ask(folder, server.url, sampling=limit)
        write_jsonl(folder / "requests.jsonl", request_rows(30))
        with raises_code("budget-exhausted"):
            ask(folder, server.url, sampling=limit, dollars=0.0075)
        paid = server.charged.total()
        assert 3 < paid < 30
        assert paid * ANSWER_COST <= 0.0075
        assert spent(folder).total == pytest.approx(paid * ANSWER_COST)
        assert len(responses(folder)) == paid
        ask(folder, server.url, sampling=limit)
    assert set(server.charged.values()) == {1}
    assert len(responses(folder)) == 30


def test_two_processes_at_once_pay_once(folder: Path) -> None:
    with ChatServer(delay=0.01) as server:
        processes = [start_process(folder, server.url) for _ in range(2)]
        for process in processes:
            process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert set(server.charged.values()) == {1}
    assert len(server.charged) == 30


@pytest.mark.slow
def test_a_kill_at_any_moment_pays_for_no_answer_twice(tmp_path: Path) -> None:
    report = kill_loop(tmp_path / "rounds/1", kills=4, requests=40, seed=5)
    assert report.faults == []
    assert report.kills >= 2
    assert report.lost > 0


def test_an_image_is_sent_as_it_is_or_not_at_all(tmp_path: Path) -> None:
    folder, picture = tmp_path / "rounds/1", tmp_path / "images/a.png"
    content = [{"type": "text", "text": "Look."}, {"type": "image_path", "path": "a.png"}]
    write_jsonl(folder / "requests.jsonl", request_rows(1, messages=[{"role": "user", "content": content}]))
    with ChatServer(keep=True) as server:
        with raises_code("missing-image"):
            ask(folder, server.url)
        assert not server.calls
        picture.parent.mkdir()
        picture.write_bytes(b"\x89PNG pixels")
        shown = Sampling("m", image_root=picture.parent)
        for sampling in (shown, shown, Sampling("m", images=False)):
            ask(folder, server.url, sampling=sampling)
        picture.write_bytes(b"\x89PNG other pixels")
        ask(folder, server.url, sampling=shown)
    parts = [body["messages"][0]["content"] for body in server.bodies]
    url = "data:image/png;base64," + base64.b64encode(b"\x89PNG pixels").decode()
    assert parts[0] == [content[0], {"type": "image_url", "image_url": {"url": url}}]
    assert parts[1] == [content[0]]
    assert len(parts) == 3
    assert server.bodies[0]["response_format"]["json_schema"]["name"] == "questions"


def test_batch_files_come_back_in_any_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = folder.parent / "prices.toml"
    prices.write_text(PRICES)
    common = (folder, "--model", "m", "--prices", prices)
    run_command(monkeypatch, *common, "--batch", "write", "--shard-lines", "12")
    shards = sorted((folder / "batch").iterdir())
    lines = [json.loads(line) for path in shards for line in path.read_text().splitlines()]
    assert [path.name for path in shards] == [f"input-0000{number}.jsonl" for number in range(3)]
    assert [line["custom_id"] for line in lines] == [f"r{number}" for number in range(30)]
    assert (lines[0]["method"], lines[0]["url"]) == ("POST", "/v1/chat/completions")

    def answer(line: dict[str, Any]) -> dict[str, Any]:
        response = {"status_code": 200, "request_id": "x", "body": completion(f"to {line['custom_id']}")}
        return {"id": "b", "custom_id": line["custom_id"], "response": response, "error": None}

    rows = [answer(line) for line in reversed(lines)]
    rows[0] = {**rows[0], "response": None, "error": {"code": "expired"}}
    rows[1]["response"]["status_code"] = 500
    rows[2]["response"]["body"] = {"choices": []}
    rows[3]["custom_id"] = "r999"
    rows.append(rows[10])
    write_jsonl(folder / "a.jsonl", rows)
    run_command(monkeypatch, *common, "--batch", "read", "--results", folder / "a.jsonl")
    told = capsys.readouterr().out
    for reason in ("26 now", "1 batch-error", "1 http-500", "1 broken-body", "1 unknown-id", "4 absent"):
        assert reason in told
    found = responses(folder)
    assert len(found) == 26
    assert all(row["text"] == f"to {name}" for name, row in found.items())
    assert spent(folder).answered == pytest.approx(26 * ANSWER_COST / 2)
    run_command(monkeypatch, *common, "--batch", "write", "--shard-bytes", "2000")
    assert sorted(path.name for path in (folder / "batch").iterdir()) == [
        f"input-0000{number}.jsonl" for number in range(2)
    ]
    with raises_code("too-large"):
        run_command(monkeypatch, *common, "--batch", "write", "--shard-bytes", "100")
    with ChatServer() as server:
        answer_all(folder, server.url)
    assert server.charged.total() == 4


def test_rays_workers_ask_what_the_client_asks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("ray.data", "aiohttp"):
        pytest.importorskip(package)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    prices = folder.parent / "prices.toml"
    prices.write_text(PRICES)
    with ChatServer(keep=True) as server:
        common = (folder, "--base-url", server.url, "--model", "m", "--prices", prices)
        with raises_code("out-of-range"):
            run_command(monkeypatch, *common, "--batch", "ray", "--rate", "59")
        run_command(monkeypatch, *common, "--batch", "ray", "--shard-lines", "12")
        by_ray = responses(folder)
        run_command(monkeypatch, *common)
        assert server.charged.total() == len(by_ray) == 30
        asked = server.bodies
        (folder.parent / "ledger.sqlite").unlink()
        server.bodies = []
        run_command(monkeypatch, *common)
        order = {json.dumps(body, sort_keys=True) for body in asked}
        assert order == {json.dumps(body, sort_keys=True) for body in server.bodies}
    assert spent(folder).answered == pytest.approx(30 * ANSWER_COST)


def test_the_command_says_what_it_did_and_what_it_cost(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = folder.parent / "prices.toml"
    prices.write_text(PRICES)
    with ChatServer() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("LLAVA_ENGINE_MODEL", "m")
        run_command(monkeypatch, folder, "--prices", prices, "--budget", 1, "--estimate")
        assert not server.calls
        run_command(monkeypatch, folder, "--prices", prices, "--budget", 1, "--rate", "60000")
    told = capsys.readouterr().out
    assert "30 requests: 0 answered before, 30 now, failed: none; $0.01 for answers" in told


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--base-url", "http://127.0.0.1:9/v1"], "missing-model"),
        (["--model", "m"], "missing-server"),
        (["--model", "m", "--budget", "1"], "missing-flag"),
        (["--model", "m", "--batch", "read"], "missing-flag"),
        (["--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--attempts", "0"], "out-of-range"),
        (["--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--attempts", "1"], "server-fails"),
    ],
)
def test_a_wrong_setting_is_one_error(
    folder: Path, words: list[str], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "LLAVA_ENGINE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    with raises_code(code):
        run_command(monkeypatch, folder, *words)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("[models.m", "not-toml"),
        (PRICES.replace("models.m", "models.other"), "unknown-price"),
        (PRICES.replace("output = 2.0", "output = -2"), "bad-price"),
        (PRICES.replace("cached = 0.5\n", ""), "bad-price"),
        (PRICES.replace("input = 1.0", 'input = "1"'), "bad-price"),
        (PRICES.replace("input = 1.0", "input = nan"), "bad-price"),
        (PRICES.replace("source =", "sauce ="), "unknown-setting"),
    ],
)
def test_a_wrong_price_file_is_refused(tmp_path: Path, change: str, code: str) -> None:
    (tmp_path / "prices.toml").write_text(change)
    with raises_code(code):
        read_price(tmp_path / "prices.toml", "m")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"id": 3}, "bad-request"),
        ({"id": "r1"}, "doubled-request"),
        ({"round": 2}, "other-round"),
        ({"schema": "poem"}, "unknown-structure"),
        ({"seed": "x"}, "bad-request"),
        ({"round": "one"}, "other-round"),
        ({"messages": []}, "bad-request"),
        ({"messages": [{"role": "user"}]}, "bad-request"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "path": "a"}]}]}, "bad-request"),
    ],
)
def test_a_wrong_request_is_refused(tmp_path: Path, change: dict[str, object], code: str) -> None:
    rows = request_rows(3)
    rows[2] |= change
    write_jsonl(tmp_path / "requests.jsonl", rows)
    with raises_code(code):
        list(read_requests(tmp_path / "requests.jsonl"))


def test_requests_of_another_round_are_refused(folder: Path) -> None:
    start_round(folder.parent / "2", model_id="x")
    (folder / "requests.jsonl").rename(folder.parent / "2/requests.jsonl")
    with raises_code("other-round"):
        ask(folder.parent / "2", "http://127.0.0.1:9/v1")


def test_another_file_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("no database, but a text that is long enough to be one" * 20)
    with raises_code("not-a-ledger"), open_ledger(tmp_path / "ledger.sqlite"):
        pass
