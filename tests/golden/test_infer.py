"""The engine: batched answers are those of one prompt at a time, each image is read and encoded once."""

from __future__ import annotations

import dataclasses
import doctest
import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

import llava
import llava.infer.answering
from llava.errors import DataError, SettingsError
from llava.files import read_json
from llava.infer.engine.engine import Engine
from llava.infer.engine.generate import build_generation_config
from llava.infer.engine.load import load
from llava.infer.engine.prompt_ids import count_shared
from llava.infer.engine.requests import Generation, ImageFile, ImageText, ModelChoice, Reply, Request
from llava.infer.engine.rounding import CLOSE_LEADS
from llava.infer.engine.schedule import plan_windows
from llava.infer.jobs.names import get_model_name_from_path
from llava.infer.jobs.prompting import prompt_of, template, template_for_chat
from llava.model.language_model.llava_llama import LlavaConfig
from llava.prompts.encode import encode_prompt
from support.errors import raises_code
from support.tiny_model import generate_alone, tiny_model

IMAGES = ["a_640x480.png", "b_333x500.png", "c_100x37.png", "j_rgba_80x50.png"]
WORDS = [
    "What is this?",
    "Describe it.",
    "How many people stand left of the big red car, and why? " * 3,
    "Why?",
]


def mixed_requests(golden: Path) -> list[Request]:
    """Text alone, one image, two images; long and short; images shared and out of order."""
    requests = [
        Request(
            prompt_of("vicuna_v1", f"{number} {WORDS[number % 4]}", "<image>\n"),
            (ImageFile(golden / "images" / IMAGES[number % 3]),),
            name=f"question {number}",
        )
        for number in range(7)
    ]
    both = tuple(ImageFile(golden / "images" / name) for name in IMAGES[2:])
    return [
        Request(prompt_of("vicuna_v1", "Tell me a story.")),
        *requests,
        Request(prompt_of("vicuna_v1", "Compare <image> with <image>."), both),
    ]


def in_order(engine: Engine, requests: list[Request]) -> list[Reply]:
    found = dict(engine.answer(requests))
    assert sorted(found) == list(range(len(requests)))
    return [found[index] for index in range(len(requests))]


@pytest.mark.parametrize("batch_size", [2, 4, 16])
@pytest.mark.parametrize("side", ["right", "left"])
def test_batched_answers_equal_one_prompt_at_a_time(golden: Path, batch_size: int, side: str) -> None:
    loaded = tiny_model(golden)
    loaded.model.config.tokenizer_padding_side = side
    requests = mixed_requests(golden)
    generation = Generation(max_new_tokens=24)
    alone = in_order(Engine(loaded, generation, batch_size=1), requests)
    batched = in_order(Engine(loaded, generation, batch_size=batch_size), requests)
    assert [reply.text for reply in batched] == [reply.text for reply in alone]
    for request, reply in zip(requests[:4], alone, strict=False):
        image = request.images[0].path if request.images else None
        assert reply.text == generate_alone(loaded, request.prompt, image, max_new_tokens=24)


def test_python_gets_the_engines_answers(golden: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether an image comes as a path or from memory, and with any other questions beside it."""
    choice = ModelChoice(str(repo / "playground/demo/model"), device="cpu", dtype="float32")
    model = llava.load(choice.path, device=choice.device, dtype=choice.dtype)
    photos = [golden / "images" / name for name in IMAGES]
    pairs = [(str(photo), word) for photo, word in zip(photos, WORDS, strict=True)] + [(None, "Say hello.")]
    alone = Engine(load(choice), Generation(max_new_tokens=8), batch_size=1)
    wanted = []
    for photo, question in pairs:
        images = (ImageFile(Path(photo)),) if photo else ()
        prompt = prompt_of("v1", question, "<image>\n" * len(images))
        wanted += in_order(alone, [Request(prompt, images)])
    assert model.answer(pairs, max_new_tokens=8) == [reply.text for reply in wanted]
    opened = [(Image.open(photo), word) for photo, word in zip(photos, WORDS, strict=True)]
    assert model.answer(opened, max_new_tokens=8) == [reply.text for reply in wanted[:4]]
    assert model.answer([]) == []
    with raises_code("empty-question") as caught:
        model.answer([(None, "a"), (None, " ")])
    assert "pair 1" in str(caught.value)
    monkeypatch.chdir(repo)
    assert doctest.testmod(llava.infer.answering).failed == 0


def test_answers_are_the_originals(golden: Path) -> None:
    loaded = tiny_model(golden)
    cases = read_json(golden / "v_vi_vii_model.json")["generate"]
    requests = [
        Request(case["prompt"], (ImageFile(golden / "images" / case["file"]),) if case["file"] else ())
        for case in cases
    ]
    greedy = in_order(Engine(loaded, Generation(max_new_tokens=32)), requests)
    assert [reply.text for reply in greedy] == [case["text"].strip() for case in cases]
    for reply, case in zip(greedy, cases, strict=True):
        assert reply.margin == pytest.approx(case["min_top2_margin"], abs=5e-5)
    beams = in_order(Engine(loaded, Generation(max_new_tokens=16, num_beams=3)), requests)
    decode = loaded.tokenizer.decode
    wanted = [decode(case["beam3_ids"][1:], skip_special_tokens=True).strip() for case in cases]
    assert [reply.text for reply in beams] == wanted


def test_samples_are_the_originals_and_do_not_depend_on_earlier_requests(golden: Path) -> None:
    loaded = tiny_model(golden)
    facts = read_json(golden / "v_vi_vii_model.json")
    first = facts["generate"][0]
    request = Request(first["prompt"], (ImageFile(golden / "images" / first["file"]),))
    engine = Engine(loaded, Generation(temperature=0.7, top_p=0.9, max_new_tokens=16, seed=7))
    ids = facts["sample_seed7_t0.7_p0.9"][1:]
    wanted = loaded.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert [reply.text for reply in in_order(engine, [request, request])] == [wanted, wanted]


def test_every_sampling_field_is_set(golden: Path) -> None:
    loaded = tiny_model(golden)
    config = build_generation_config(loaded, Generation(temperature=0.2))
    assert (config.do_sample, config.temperature, config.top_p, config.top_k) == (True, 0.2, 1.0, 50)
    assert not build_generation_config(loaded, Generation()).do_sample


def test_close_calls_are_computed_again_on_their_own(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model(golden)
    requests = mixed_requests(golden)
    generation = Generation(max_new_tokens=6)
    monkeypatch.setitem(CLOSE_LEADS, "float32", float("inf"))
    sizes: list[int] = []
    encode_views = loaded.model.encode_views
    monkeypatch.setattr(
        loaded.model,
        "encode_views",
        lambda images, *rest: sizes.append(len(images)) or encode_views(images, *rest),
    )
    in_order(Engine(loaded, generation, batch_size=4, exact=False), requests)
    assert sum(sizes) == 4
    sizes.clear()
    in_order(Engine(loaded, generation, batch_size=4), requests)
    assert sizes[1:] == [1] * 9


def test_each_image_is_read_and_encoded_once(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava.infer.engine import image_loading as module

    read: Counter[Path] = Counter()
    read_image = module.read_image
    monkeypatch.setattr(module, "read_image", lambda path: read.update([path]) or read_image(path))
    loaded = tiny_model(golden)
    encoded: list[int] = []
    encode_views = loaded.model.encode_views
    monkeypatch.setattr(
        loaded.model,
        "encode_views",
        lambda images, *rest: encoded.append(len(images)) or encode_views(images),
    )
    requests = [dataclasses.replace(request) for request in mixed_requests(golden) * 3]
    in_order(Engine(loaded, Generation(max_new_tokens=1), batch_size=1, exact=False), requests)
    assert sum(encoded) == 4
    assert set(read.values()) == {1}
    assert len(read) == 4


def test_streamed_and_plain_replies_are_equal(golden: Path) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ids.append(-1)

    loaded = tiny_model(golden)
    request = mixed_requests(golden)[1]
    engine = Engine(loaded, Generation(max_new_tokens=12))
    recorder = Recorder()
    reply = engine.reply_streaming(request, recorder)
    assert reply.text == in_order(engine, [request])[0].text
    assert recorder.ids[-1] == -1
    assert loaded.tokenizer.decode(recorder.ids[:-1], skip_special_tokens=True).strip() == reply.text


@pytest.mark.parametrize(
    ("prompt", "images", "code", "fact"),
    [
        ("<image> and <image>", [IMAGES[0]], "image-count", "2 <image>"),
        ("no picture", [IMAGES[0]], "image-count", "0 <image>"),
        ("word " * 5000, [], "prompt-too-long", "4096"),
        ("<image>", ["broken.png"], "unreadable-image", "broken.png"),
        ("<image>", ["absent.png"], "missing-image", "absent.png"),
    ],
)
def test_a_request_that_cannot_be_answered_names_itself(
    golden: Path, tmp_path: Path, prompt: str, images: list[str], code: str, fact: str
) -> None:
    broken = (golden / "images" / IMAGES[0]).read_bytes()[:2000]
    (tmp_path / "broken.png").write_bytes(broken)
    folders = {
        name: tmp_path if name in ("broken.png", "absent.png") else golden / "images" for name in images
    }
    request = Request(prompt, tuple(ImageFile(folders[name] / name) for name in images), name="question 8")
    with raises_code(code, DataError) as caught:
        list(Engine(tiny_model(golden), Generation(max_new_tokens=1)).answer([request]))
    assert str(caught.value).startswith("question 8: ")
    assert fact in str(caught.value)


def test_the_first_answer_does_not_wait_until_all_questions_are_encoded(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    monkeypatch.setattr(
        "llava.infer.engine.prompt_ids.encode_prompt",
        lambda prompt, *rest: encoded.append(prompt) or encode_prompt(prompt, *rest),
    )
    requests = [Request(prompt_of("vicuna_v1", f"{number}?")) for number in range(60)]
    requests.append(Request("word " * 5000, name="the long one"))
    engine = Engine(tiny_model(golden), Generation(max_new_tokens=1), batch_size=4, exact=False)
    with raises_code("prompt-too-long", DataError) as caught:
        next(engine.answer(requests))
    assert str(caught.value).startswith("the long one: ")
    assert encoded == [requests[-1].prompt]  # only this one is long enough to be counted first
    encoded.clear()
    replies = engine.answer(requests[:-1])
    next(replies)
    assert len(encoded) <= 24
    assert len(list(replies)) == 59
    assert sorted(encoded) == sorted(request.prompt for request in requests[:-1])
    # Where the text does not tell how many ids it has, its window does, and the answers before it are kept.
    monkeypatch.setattr("llava.infer.engine.prompt_ids.PromptEncoder.check", lambda *_: None)
    replies = engine.answer(requests)
    assert len(list(itertools.islice(replies, 56))) == 56
    with raises_code("prompt-too-long", DataError):
        list(replies)


def test_a_broken_image_stops_no_other_answer_of_its_window(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes((golden / "images" / IMAGES[0]).read_bytes()[:2000])
    broken = Request("<image>", (ImageFile(tmp_path / "broken.png"),), name="question 0")
    requests = [broken, *mixed_requests(golden)[:4], broken]
    replies = Engine(tiny_model(golden), Generation(max_new_tokens=1)).answer(requests)
    assert sorted(index for index, _ in itertools.islice(replies, 4)) == [1, 2, 3, 4]
    with raises_code("unreadable-image", DataError) as caught:
        next(replies)
    assert str(caught.value).startswith("question 0: ")


def test_base64_text_that_is_not_an_image_names_its_request(golden: Path) -> None:
    request = Request("<image>", (ImageText("bm8gaW1hZ2U="),), name="question 3")
    with raises_code("unreadable-image", DataError) as caught:
        list(Engine(tiny_model(golden), Generation(max_new_tokens=1)).answer([request]))
    assert str(caught.value).startswith("question 3: ")


def test_the_windows_hold_each_request_once_with_an_images_requests_together() -> None:
    requests = [
        Request(f"USER: <image> {'why ' * (number // 50)}", (ImageFile(Path(f"{number % 50}.jpg")),))
        for number in range(200)
    ]
    windows = plan_windows(requests[::-1], size=30)
    groups = [group for window in windows for group in window.groups]
    assert sorted(index for group in groups for index in group.requests) == list(range(200))
    assert {len(group.requests) for group in groups} == {4}
    assert all(group.requests == tuple(sorted(group.requests, reverse=True)) for group in groups)
    assert len(windows) == 2
    dropped = [image for window in windows for image in window.last]
    assert len(dropped) == len(set(dropped)) == 50
    assert sum(len(window.images) for window in windows) == 50


def test_a_group_has_the_same_images_and_words_before_the_last() -> None:
    picture, other = (ImageFile(Path("a.jpg")),), (ImageFile(Path("b.jpg")),)
    both, swapped = picture + other, other + picture
    asked = [
        ("A <image> what", picture),
        ("A <image> who", picture),
        ("B <image> what", picture),
        ("A <image> what", other),
        ("A <image> or <image>?", both),
        ("A <image> and <image>?", both),
        ("A <image> or <image>!", both),
        ("A <image> or <image>?", swapped),
        ("Hello.", ()),
        ("Hello.", ()),
    ]
    (window,) = plan_windows([Request(*one) for one in asked], size=9)
    found = sorted(group.requests for group in window.groups)
    assert found == [(1, 0), (2,), (3,), (4, 6), (5,), (7,), (8,), (9,)]


def test_a_groups_prefix_is_the_common_start_of_its_prompts() -> None:
    assert count_shared([[1, -200, 5, 6, 7], [1, -200, 5, 8], [1, -200, 5, 6]]) == 3
    assert count_shared([[1, 5], [1, 5]]) == count_shared([[1, 5]]) == 2
    assert count_shared([[1, 5], [2, 5]]) == 0


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("liuhaotian/llava-v1.5-7b", "llava-v1.5-7b"),
        ("./x/llava/checkpoint-5/", "llava_checkpoint-5"),
        ("checkpoint-5", "checkpoint-5"),
    ],
)
def test_a_model_is_called_after_its_folder(path: str, name: str) -> None:
    assert get_model_name_from_path(path) == name


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Llava-Llama-2-13b", "llava_llama_2"),
        ("llava-v1.6-Mistral-7b", "mistral_instruct"),
        ("llava-v1.6-34b", "chatml_direct"),
        ("llava-v1.5-7b-lora", "llava_v1"),
        ("my-mpt", "mpt"),
        ("anything", "llava_v0"),
    ],
)
def test_a_chats_template_follows_the_models_name(name: str, wanted: str) -> None:
    choice = ModelChoice("/path", name=name)
    assert template_for_chat(None, LlavaConfig(), choice) == wanted
    assert template_for_chat("vicuna_v1", LlavaConfig(), choice) == "vicuna_v1"


@pytest.mark.parametrize(
    ("fields", "base", "wanted"),
    [
        (
            {"conversation_template": "llava_llama_2", "mm_projector_type": "mlp2x_gelu"},
            None,
            "llava_llama_2",
        ),
        ({"conversation_template": "no such"}, None, "mpt"),
        ({"mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": "pad"}, None, "llava_v1"),
        ({"mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": "anyres"}, None, "mpt"),
        ({}, "lmsys/vicuna-7b-v1.5", "llava_v1"),
        ({}, "lmsys/vicuna-7b-v0", "mpt"),
    ],
)
def test_a_chats_template_follows_the_checkpoint_before_its_name(
    caplog: pytest.LogCaptureFixture, fields: dict[str, str], base: str | None, wanted: str
) -> None:
    choice = ModelChoice("/path", base, name="my-mpt")
    with caplog.at_level("INFO"):
        assert template_for_chat(None, LlavaConfig(**fields), choice) == wanted
    assert wanted in caplog.text
    assert "--conv-mode" in caplog.text


def test_a_plain_model_gets_the_tagged_template_where_there_is_one() -> None:
    assert template("v1", "llava-plain") == "v1_mmtag"
    assert template("vicuna_v1", "llava-plain") == "vicuna_v1"
    assert template("v1", "llava-plain-finetune") == "v1"
    with pytest.raises(SettingsError, match="'v9': no such template; there are: chatml_direct"):
        template("v9", "llava")
