"""vLLM before the engine: our ids and pictures go in, certain answers come back, close calls do not."""

from __future__ import annotations

import shutil
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from llava.errors import AnswersError, SettingsError
from llava.eval.__main__ import evaluate, job_settings, parse_flags
from llava.eval.backends import export_once
from llava.exchange.hf_folder import export_hf
from llava.files import read_json, read_jsonl
from llava.image_reading import read_image
from llava.images import crop_picture, process_images
from llava.infer.engine.engine import Engine
from llava.infer.engine.generate import find_stop_ids
from llava.infer.engine.prompt_ids import PromptEncoder
from llava.infer.engine.requests import Generation, ImageFile, ModelChoice, Request
from llava.infer.engine.rounding import CLOSE_LEADS
from llava.infer.jobs.prompting import prompt_of
from llava.infer.jobs.shards import Shard
from llava.infer.vllm.answerer import Generated, VllmAnswerer, least_margin
from llava.infer.vllm.front import read_front
from llava.infer.vllm.server import VllmServer
from support import tiny_checkpoints as tiny
from support.errors import raises_code
from support.shared_data import golden_folder
from support.tiny_model import tiny_model
from support.vllm_server import ServedModel, served


def model_of(golden: Path) -> ModelChoice:
    return ModelChoice(str(golden / tiny.ADAPTER), str(golden / tiny.LANGUAGE), "tiny", "cpu", "float32")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """The golden adapter, merged and exported in float32."""
    choice, out = model_of(golden_folder()), tmp_path_factory.mktemp("served") / "hf"
    export_hf(choice.path, choice.base, out, dtype="float32")
    return ServedModel(out)


def mme(root: Path, golden: Path) -> Path:
    """Two yes/no questions about each of three images."""
    folder = root / "MME/MME_Benchmark_release_version/count"
    folder.mkdir(parents=True)
    for name in ("a_640x480.png", "b_333x500.png", "c_100x37.png"):
        shutil.copy(golden / "images" / name, folder)
        lines = [f"{'Is it ' * n}{n}? Please answer yes or no.\tYes\n" for n in range(2)]
        (folder / name).with_suffix(".txt").write_text("".join(lines))
    return root


def flags_of(golden: Path, root: Path, name: str, *more: str) -> list[str]:
    choice = model_of(golden)
    flags = ["mme", "--model-path", choice.path, "--model-base", str(choice.base), "--device", "cpu"]
    flags += [
        "--eval-root",
        str(root),
        "--name",
        name,
        "--max_new_tokens",
        "5",
        "--steps",
        "prepare,answer,merge,score",
    ]
    return [*flags, *more]


def texts(root: Path, name: str) -> list[str]:
    return [row["text"] for _, row in read_jsonl(root / f"MME/answers/{name}.jsonl")]


def test_all_but_the_weights_is_that_of_the_loaded_model(golden: Path, server: ServedModel) -> None:
    loaded, front = tiny_model(golden, adapter=True), read_front(model_of(golden))
    assert front.stop_ids == find_stop_ids(loaded)
    assert front.context_length == loaded.context_length
    assert front.patches == loaded.model.image_positions == server.model.config.image_seq_length
    request = Request(prompt_of("v1", "Wörd  1?\n", "<image>\n"), (ImageFile(golden),))
    found, wanted = (
        PromptEncoder(made.tokenizer, made.patches, made.context_length).encode(request)
        for made in (front, loaded)
    )
    assert found == wanted


@pytest.mark.parametrize("aspect", ["pad", "square"])
@pytest.mark.parametrize("name", ["a_640x480.png", "c_100x37.png", "g_1x1.png", "j_rgba_80x50.png"])
def test_a_picture_has_the_pixels_of_its_image(golden: Path, aspect: str, name: str) -> None:
    front = read_front(model_of(golden))
    front.config.image_aspect_ratio = aspect
    image = read_image(golden / "images" / name)
    picture = crop_picture(image, front.image_processor, front.config)
    found, wanted = (process_images([one], front.image_processor, front.config) for one in (picture, image))
    assert torch.equal(found[0], wanted[0])


@pytest.mark.parametrize(
    ("steps", "margin"),
    [
        ([[-0.25, -1.5], [-2.0, -1.0]], 1.0),
        ([[-0.5, -0.5], [-0.1, -3.0]], 0.0),
        ([[-0.1, -3.0, -0.2]], 0.1),
        ([[-0.1]], 0.0),
        ([], 0.0),
    ],
)
def test_the_margin_is_that_of_the_closest_step(steps: list[list[float]], margin: float) -> None:
    assert least_margin(Generated([1] * len(steps), steps)) == pytest.approx(margin)


def test_answers_are_the_engines_and_close_calls_are_left_to_it(
    golden: Path, server: ServedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    root = mme(tmp_path, golden)
    evaluate(flags_of(golden, root, "engine"))
    with served(server) as url, caplog.at_level("INFO"):
        vllm = flags_of(golden, root, "vllm", "--backend", url, "--dtype", "float32")
        evaluate(vllm)
        assert texts(root, "vllm") == texts(root, "engine")
        assert "vLLM: 0 of 6 answers are close calls" in caplog.text
        asked = len(server.asked)
        pictures = [body["content_parts"][0]["uuid"] for body in server.asked[-6:]]
        assert (len(pictures), len(set(pictures))) == (6, 3)
        evaluate(vllm)  # nothing is left to ask
        assert len(server.asked) == asked
        margins = sorted(row["margin"] for _, row in read_jsonl(root / "MME/answers/vllm/journal/1_0.jsonl"))
        # A guard between the third and the fourth margin, by the scale that stands for vLLM's logits.
        monkeypatch.setitem(CLOSE_LEADS, "float32", (margins[2] + margins[3]) / 2 / 32 / 2)
        evaluate([*vllm, "--overwrite"])
    assert "vLLM: 3 of 6 answers are close calls" in caplog.text
    assert texts(root, "vllm") == texts(root, "engine")
    assert read_json(root / "MME/answers/vllm/journal/run.json")["about"]["backend"] == "vllm"
    assert read_json(root / "MME/answers/vllm/metrics.json")["rounding"]["left_to_engine"] == 3
    found = read_json(root / "MME/answers/engine/metrics.json")["rounding"]
    assert found == {"asked_again": 0, "changed": 0, "noise": None}
    with raises_code("other-run", AnswersError):
        evaluate(flags_of(golden, root, "vllm"))


def test_a_server_of_another_model_is_refused(golden: Path, server: ServedModel, tmp_path: Path) -> None:
    root = mme(tmp_path, golden)
    other = ServedModel(server.folder)
    with torch.no_grad():
        other.model.get_output_embeddings().weight *= 1.01  # the same answers, by other margins
    with served(other) as url, raises_code("other-model", AnswersError):
        evaluate(flags_of(golden, root, "vllm", "--backend", url, "--dtype", "float32"))
    assert not (root / "MME/answers/vllm/journal/1_0.jsonl").read_text()


def test_a_servers_rounding_says_what_a_close_call_is(
    golden: Path, server: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice, generation = model_of(golden), Generation(max_new_tokens=5)
    usual = 2 * CLOSE_LEADS["float32"]
    requests = [
        Request(prompt_of("v1", f"{number}?", "<image>\n"), (ImageFile(golden / "images/a_640x480.png"),))
        for number in range(4)
    ]
    monkeypatch.setattr(
        "llava.infer.vllm.answerer.least_margin", lambda said: least_margin(said) + 0.5 * usual * 32
    )
    with served(server) as url, closing(VllmServer(url)) as transport:
        answerer = VllmAnswerer(
            read_front(choice),
            transport,
            generation,
            dtype="float32",
            compare_with=lambda: Engine(tiny_model(golden, adapter=True), generation),
        )
        assert len(dict(answerer.answer(requests))) == 4
    assert answerer.close_lead == pytest.approx(3 * usual, rel=0.2)


def test_a_server_that_is_not_there_is_named(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llava.infer.vllm.server._RETRIES", 0)
    address = ("--backend", "http://127.0.0.1:9", "--dtype", "float32")
    with raises_code("no-server", SettingsError):
        evaluate(flags_of(golden, mme(tmp_path, golden), "vllm", *address))


@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--backend", "vllm"], "missing-package"),
        (["--backend", "sglang"], "unknown-backend"),
        (["--backend", "http://host"], "backend-needs-dtype"),
        (["--backend", "vllm", "--temperature", "0.2"], "backend-is-greedy"),
        (["--backend", "vllm", "--num_beams", "2"], "backend-is-greedy"),
        (["--backend", "vllm", "--load-4bit"], "backend-and-quantised"),
        (["--backend-settings", "{}"], "bad-backend-settings"),
        (["--backend", "http://host", "--backend-settings", "{}"], "bad-backend-settings"),
    ],
)
def test_a_flag_that_does_not_go_with_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, more: list[str], code: str
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # where it is installed, too
    with raises_code(code, SettingsError):
        job_settings(parse_flags(["mme", "--model-path", "m", *more]), Shard())


@pytest.mark.parametrize("text", ["{", "[1]", '{"dtype": "float16"}'])
def test_settings_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("llava.eval.backends.find_spec", lambda name: name)
    flags = ["mme", "--model-path", "m", "--backend", "vllm", "--backend-settings", text]
    with raises_code("bad-backend-settings", SettingsError):
        job_settings(parse_flags(flags), Shard())


def test_several_processes_share_an_export(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAVA_CACHE", str(tmp_path))
    folder = export_once(model_of(golden))
    written = (folder / "config.json").stat().st_mtime_ns
    assert export_once(model_of(golden)) == folder
    assert (folder / "config.json").stat().st_mtime_ns == written
    assert list((tmp_path / "exports").glob("*/config.json")) == [folder / "config.json"]
