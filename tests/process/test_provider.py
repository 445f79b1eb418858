"""The demo's provider, and the checks of `llava engine clean` that ask a provider."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava.data_engine.__main__ import main
from llava.data_engine.cleaning.blind import BlindItem
from llava.data_engine.cleaning.consistency import Reading, judge_reading
from llava.data_engine.cleaning.provider import Provider, parse_letters, parse_type
from llava.data_engine.cleaning.types import TypedQuestion
from llava.data_engine.generation.bodies import Sampling, read_requests
from llava.data_engine.generation.client import Server
from llava.data_engine.generation.generate import RoundBudget, RoundRun
from llava.data_engine.generation.ledger import open_ledger
from llava.data_engine.loop.plan import make_plan
from llava.data_engine.loop.pool import make_pool
from llava.data_engine.loop.split import make_split
from llava.data_engine.requests.versions import read_versions, template_path
from llava.files import read_jsonl, write_jsonl
from llava.scoring.metrics import write_scores
from support.chat_server import ChatServer, text_of
from support.engine_kills import PRICE
from support.engine_rounds import run_of
from support.errors import raises_code

REPO = Path(__file__).resolve().parents[2]
TYPES = ("Instance Attributes", "Text Understanding", "Scene Understanding")


@pytest.fixture(scope="module")
def world() -> Iterator[Any]:
    """The demo's modules."""
    sys.path.insert(0, str(REPO / "playground/demo"))
    yield {name: importlib.import_module(name) for name in ("provider", "tinyworld.layouts")}
    sys.path.remove(str(REPO / "playground/demo"))


@pytest.fixture(scope="module")
def round_of(world: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo's data and a round's folder: three questions an image, each of another type."""
    work = tmp_path_factory.mktemp("work")
    world["tinyworld.layouts"].write_round_images(work / "data", 0, 40)
    rows = []
    for number in range(120):
        kind, image = TYPES[number % 3], f"demo/rounds/{number // 3:06}.png"
        content = [{"type": "text", "text": f"Question type: {kind}"}, {"type": "image_path", "path": image}]
        rows.append(
            {
                "id": f"r{number}",
                "round": 1,
                "type": kind,
                "image": image,
                "seed": number,
                "schema": "questions",
                "messages": [{"role": "user", "content": content}],
            }
        )
    write_jsonl(work / "rounds/1/requests.jsonl", rows)
    (work / "rounds/1/round.toml").write_text("round = 1\n")
    return work / "data", work / "rounds/1"


def run_engine(monkeypatch: pytest.MonkeyPatch, url: str, *words: str) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("LLAVA_ENGINE_MODEL", "tinyworld")
    monkeypatch.setattr(sys, "argv", ["llava engine", *words])
    main()


def test_a_round_without_a_network(
    world: Any, round_of: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, folder = round_of
    provider = world["provider"].read_provider(data, 1, mistakes=0.5)
    sampling = Sampling("tinyworld", image_root=data)
    answers = {
        request.id: provider.answer(request.body(sampling, structured=True))
        for request in reversed(list(read_requests(folder / "requests.jsonl")))
    }
    paths = (str(folder), "--image-root", str(data))
    with world["provider"].serve(provider) as url:
        run_engine(monkeypatch, url, "generate", *paths)
        texts = {row["id"]: row["text"] for _, row in read_jsonl(folder / "responses.jsonl")}
        assert texts == {name: answer.text for name, answer in answers.items()}
        run_engine(monkeypatch, url, "clean", *paths, "--ask", "consistency", "types", "blind")
    rejected = [row["request"] for _, row in read_jsonl(folder / "rejected.jsonl")]
    report = json.loads((folder / "clean.json").read_text())
    assert report["guessed"]["n"] == report["accepted"]
    for name, answer in answers.items():
        assert rejected.count(name) == (answer.mistake is not None), answer
    # Everything is in the ledger now: no server is needed to clean again.
    before = (folder / "accepted.jsonl").read_bytes()
    run_engine(monkeypatch, "http://127.0.0.1:9", "clean", *paths, "--ask", "consistency", "types", "blind")
    assert (folder / "accepted.jsonl").read_bytes() == before


def test_the_provider_serves_a_command_and_ends_with_its_code(
    world: Any, round_of: tuple[Path, Path]
) -> None:
    script = "import os, sys; sys.exit(7 * os.environ['OPENAI_BASE_URL'].startswith('http://127.0.0.1'))"
    sys.argv, argv = ["provider.py", "--data", str(round_of[0]), "--", sys.executable, "-c", script], sys.argv
    try:
        with pytest.raises(SystemExit) as end:
            world["provider"].main()
    finally:
        sys.argv = argv
    assert end.value.code == 7


def provider_at(url: str, ledger: Any, dollars: float | None = None) -> Provider:
    budget = RoundBudget("1", PRICE, dollars)
    sampling = Sampling("m", images=False)
    return Provider(run=RoundRun(ledger, Server(url, attempts=1), sampling, budget), images=False)


def test_readings_are_paid_for_once_and_within_the_budget(tmp_path: Path) -> None:
    readings = [Reading(f"What is {n}?", ("a", "b", "c", "d"), {"image_info": {"seen": n}}) for n in range(4)]

    def answer(body: Any) -> str:
        text = text_of(body)
        assert '"seen"' in text
        return "rubbish <b>" if "What is 3?" in text else '{"letters": ["B", "C"]}'

    with ChatServer(answer=answer) as server, open_ledger(tmp_path / "ledger.sqlite") as ledger:
        with raises_code("over-budget"):
            provider_at(server.url, ledger, 1e-9).read(readings)
        assert not server.charged
        for _ in range(2):
            found = provider_at(server.url, ledger, 100).read(readings)
            assert found == [frozenset({1, 2})] * 3 + [None]
        assert set(server.charged.values()) == {1}
    assert judge_reading(readings[0], 1, found[0]) is not None
    assert [verdict[0] for n in (1, 0) if (verdict := judge_reading(readings[0], n, found[0]))] == [
        "two_right_options",
        "inconsistent",
    ]
    assert judge_reading(readings[3], 1, None) == ("unchecked", "the second reader gave no answer")
    assert judge_reading(readings[0], 1, frozenset({1})) is None


def test_types_and_guesses_by_a_provider(tmp_path: Path) -> None:
    def answer(body: Any) -> str:
        text = text_of(body)
        if "letter" in text:
            return '{"letters": ["A"]}'
        return "I would say so" if "unclear" in text else '{"type": "counting"}'

    questions = [
        TypedQuestion("r1", "How many?", "counting"),
        TypedQuestion("r2", "How many?", "reading"),
        TypedQuestion("r3", "unclear", "reading"),
    ]
    items = [BlindItem("i", "counting", f"How many {n}?", ("a", "b", "c", "d"), 0) for n in range(30)]
    with ChatServer(answer=answer) as server, open_ledger(tmp_path / "ledger.sqlite") as ledger:
        provider = provider_at(server.url, ledger)
        assert provider.type_check(["counting", "reading"])(questions) == [None, "counting", None]
        report = provider.guess(items)
    assert (report["flagged"], report["n"], report["accuracy"]) == (True, 30, 1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"letters": ["A", "D"]}', {0, 3}),
        ('Sure: {"letters": []}', set()),
        ('```json\n{"letters": ["C"]}\n```', {2}),
        ("(B) the cat", {1}),
        ("C", {2}),
        ('{"letters": ["E"]}', None),
        ('{"letters": "A"}', None),
        ("All of them", None),
        ("", None),
        (None, None),
    ],
)
def test_letters_are_read_from_what_a_model_writes(text: str | None, found: set[int] | None) -> None:
    assert parse_letters(text, 4) == found


def test_a_type_is_read_from_what_a_model_writes() -> None:
    assert [parse_type(text) for text in ('{"type": "a"}', " a.\n", None)] == ["a", "a", ""]


def test_the_worlds_model_improves_its_prompt(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, folder = tmp_path / "data", tmp_path / "rounds/1"
    world["tinyworld.layouts"].write_round_images(data, 0, 40)
    make_split(tmp_path / "rounds", run_of())
    make_pool(folder, write_scores(tmp_path / "m0", run_of()), changes=["requests=24"])
    make_plan(folder)
    images = ("--images", str(data / "demo/rounds"), "--eval-root", str(tmp_path / "none"))
    provider = world["provider"].read_provider(data, 1, mistakes=0.6, kinds=["wrong answer"])
    with world["provider"].serve(provider) as url:
        for step in (
            ("requests", str(folder), *images, "--attach-image", "--questions", "1"),
            ("generate", str(folder)),
            ("prompt", "review", str(folder), "--judge"),
            ("prompt", "suggest", str(folder)),
            ("prompt", "accept", str(folder), "--judge"),
        ):
            run_engine(monkeypatch, url, *step, "--image-root", str(data))
    said = capsys.readouterr().out
    assert "kept, it is the template now" in said
    first, second = read_versions(tmp_path / "rounds")
    assert second.parent == first.version
    assert "make sure that the answer is right" in template_path(tmp_path / "rounds", "questions").read_text()
    passed = [sum(row["passed"] for row in one.pass_rates.values()) for one in (first, second)]
    of = [sum(row["of"] for row in one.pass_rates.values()) for one in (first, second)]
    assert 0 < passed[0] < of[0]
    assert passed[1] == of[1]
