"""Templates give the original's prompts to the character, and say where the answers lie."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.conversation import (
    Conversation,
    SeparatorStyle,
    conv_templates,
    default_conversation,
    render,
)
from llava.errors import DataError
from llava.infer.jobs.prompting import prompt_of
from llava.schema import Turn
from support.errors import raises_code

NAMES = [
    *("default", "v0", "llava_v0", "v0_mmtag"),
    *("v1", "vicuna_v1", "llava_v1", "v1_mmtag"),
    *("llama_2", "llava_llama_2", "mistral_instruct"),
    *("mpt", "chatml_direct", "mistral_direct"),
    *("plain", "v0_plain"),
]


def prompt_or_error(name: str, messages: list[list[Any]]) -> Any:
    conversation = conv_templates[name].copy()
    for speaker, text in messages:
        role = conversation.roles["UA".index(speaker)]
        conversation.append_message(role, tuple(text) if isinstance(text, list) else text)
    try:
        return conversation.get_prompt()
    except Exception as error:  # the golden file records types
        return {"error": type(error).__name__}


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_the_originals(golden: Path, name: str) -> None:
    record = json.loads((golden / "i_conversation_prompts.json").read_text())
    wanted = record["templates"][name]
    template, meta = conv_templates[name], wanted["meta"]
    assert template.sep_style.name == meta.pop("sep_style")
    assert [list(message) for message in template.messages] == meta.pop("messages")
    assert list(template.roles) == meta.pop("roles")
    assert {field: getattr(template, field) for field in meta} == meta
    prompts = {case: prompt_or_error(name, messages) for case, messages in record["scenarios"].items()}
    assert prompts == wanted["prompts"]


def test_the_registry_holds_the_originals_names() -> None:
    assert sorted(conv_templates) == sorted(NAMES)
    assert default_conversation is conv_templates["vicuna_v1"]


def test_a_program_can_register_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = replace(default_conversation, system="Answer in one word.")
    monkeypatch.setitem(conv_templates, "mine", mine)
    assert prompt_of("mine", "What?").startswith("Answer in one word. USER: What?")


def test_a_worked_example_to_the_character() -> None:
    conversation = conv_templates["vicuna_v1"].copy()
    conversation.append_message("USER", "<image>\nQ1")
    conversation.append_message("ASSISTANT", "A1")
    conversation.append_message("USER", "Q2")
    conversation.append_message("ASSISTANT", None)
    assert conversation.get_prompt().endswith(" USER: <image>\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT:")


def test_a_copy_leaves_the_template_alone() -> None:
    first = default_conversation.copy()
    first.append_message("USER", "Hello")
    second = first.copy()
    second.messages[0][1] = "Changed"  # type: ignore[index]
    assert first.messages == [["USER", "Hello"]]
    assert default_conversation.messages == ()
    with pytest.raises(TypeError, match="copy"):
        default_conversation.append_message("USER", "Hello")


@pytest.mark.parametrize("opening", [("ASSISTANT", "Hi"), ("USER", "")])
def test_llama_2_must_open_with_the_user(opening: tuple[str, str]) -> None:
    conversation = conv_templates["llava_llama_2"].copy()
    conversation.append_message(*opening)
    with pytest.raises(AssertionError):
        conversation.get_prompt()


# ---- images a person looks at


def test_images_are_those_of_the_humans_turns() -> None:
    conversation = conv_templates["v1"].copy()
    red = Image.new("RGB", (30, 20), "red")
    conversation.append_message("USER", ("What?", red, "Default"))
    conversation.append_message("ASSISTANT", "Red.")
    conversation.append_message("USER", "Sure?")
    assert conversation.get_images(return_pil=True) == [red]
    (encoded,) = conversation.get_images()
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (30, 20)
    assert conversation.dict()["messages"][0] == ["USER", "What?"]
    (asked, answer), (again, missing) = conversation.to_gradio_chatbot()
    assert asked.startswith('<img src="data:image/jpeg;base64,')
    assert asked.endswith('alt="user upload image" />What?')
    assert (answer, again, missing) == ("Red.", "Sure?", None)


@pytest.mark.parametrize(
    ("size", "mode", "wanted"),
    [
        ((30, 21), "Pad", (30, 30)),
        ((30, 21), "Crop", (30, 21)),
        ((30, 21), "Resize", (336, 336)),
        ((2688, 1344), "Default", (1344, 672)),
        ((1000, 4000), "Default", (336, 1344)),
    ],
)
def test_process_modes_set_the_size(size: tuple[int, int], mode: str, wanted: tuple[int, int]) -> None:
    image = default_conversation.process_image(Image.new("RGB", size, "white"), mode, return_pil=True)
    assert image.size == wanted


def test_padding_is_grey_and_an_odd_row_goes_below() -> None:
    image = default_conversation.process_image(Image.new("RGB", (5, 2), "white"), "Pad", return_pil=True)
    rows = [image.getpixel((0, row)) for row in range(5)]
    grey, white = (122, 116, 104), (255, 255, 255)
    assert rows == [grey, white, white, grey, grey]


def test_an_unknown_process_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="Squash"):
        default_conversation.process_image(Image.new("RGB", (5, 2)), "Squash")


# ---- training text

TURNS = [Turn("human", "<image>\nQ1"), Turn("gpt", "A1"), Turn("human", "Q2"), Turn("gpt", "A2")]
ANSWERS = {
    SeparatorStyle.TWO: [" A1</s>", " A2</s>"],
    SeparatorStyle.LLAMA_2: [" A1 </s>", " A2 </s>"],
    SeparatorStyle.MPT: ["A1<|im_end|>", "A2<|im_end|>"],
    SeparatorStyle.SINGLE: [" A1\n###", " A2\n###"],
}


@pytest.mark.parametrize("name", [name for name in NAMES if "plain" not in name])
def test_spans_hold_the_answers_with_their_end_marks(name: str) -> None:
    text, spans = render(conv_templates[name], TURNS)
    assert [text[start:end] for start, end in spans] == ANSWERS[conv_templates[name].sep_style]


@pytest.mark.parametrize("name", NAMES[4:14])
def test_training_text_is_what_a_chat_would_have_seen(name: str) -> None:
    template = conv_templates[name]
    conversation = template.copy()
    for turn in TURNS:
        conversation.append_message(template.roles[turn.speaker == "gpt"], turn.text)
    assert render(template, TURNS)[0] == conversation.get_prompt()


def test_plain_keeps_the_image_and_the_caption_only() -> None:
    text, spans = render(conv_templates["plain"], [Turn("human", "Describe.\n<image>"), Turn("gpt", "a cat")])
    assert text == "<image>a cat\n"
    assert spans == [(7, 13)]


def test_an_answer_that_is_empty_has_no_span() -> None:
    turns = [Turn("human", "Q1"), Turn("gpt", ""), Turn("human", "Q2"), Turn("gpt", "A2")]
    text, spans = render(default_conversation, turns)
    assert text.endswith("USER: Q1 ASSISTANT:USER: Q2 ASSISTANT: A2</s>")
    assert [text[start:end] for start, end in spans] == [" A2</s>"]


@pytest.mark.parametrize(
    ("name", "turns", "code", "fact"),
    [
        ("v1", [Turn("human", "a"), Turn("human", "b")], "turns-do-not-alternate", "turn 1"),
        ("v1", [Turn("gpt", "a")], "turns-do-not-alternate", "turn 0"),
        ("llama_2", [Turn("human", ""), Turn("gpt", "b")], "empty-first-turn", "turn 0"),
        ("plain", TURNS, "wrong-turns", "4 turns"),
        ("plain", [Turn("human", "a"), Turn("gpt", "b")], "wrong-turns", "<image>"),
    ],
)
def test_turns_a_template_cannot_hold_are_refused(name: str, turns: list[Turn], code: str, fact: str) -> None:
    with raises_code(code, DataError) as error:
        render(conv_templates[name], turns)
    assert fact in str(error.value)


def test_a_template_of_ones_own_works() -> None:
    mine = Conversation("Sys.", ("Q", "A"), sep_style=SeparatorStyle.TWO, sep="|", sep2="$", version="v1")
    text, spans = render(mine, [Turn("human", "x"), Turn("gpt", "y")])
    assert (text, spans) == ("Sys.|Q: x|A: y$", [(12, 15)])
