"""Exported folders answer in transformers as the model does here, and come back unchanged."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from jinja2 import Environment
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.exchange.chat_template import make_chat_template
from llava.exchange.hf_folder import export_hf, import_hf
from llava.exchange.names import from_hf, to_hf
from llava.exchange.tokenizer_file import make_fast_tokenizer, require_equal_ids
from llava.images import process_images
from llava.infer.jobs.prompting import prompt_of
from llava.model.builder import load_pretrained_model
from llava.prompts.encode import tokenizer_image_token
from llava.tokenizer import load_tokenizer
from support import tiny_checkpoints as tiny
from support.errors import raises_code
from support.shared_data import golden_folder

TOKENIZERS = [
    "weights/tiny-vicuna-v1.5",
    *(f"tokenizer32k_legacy_{kind}" for kind in ("absent", "false", "true")),
]
PROMPTS = [
    "USER: <image>\nWhat is this? ASSISTANT:",
    prompt_of("v1", "How many  cats?\nAnswer briefly.", "<image>\n"),
]


def photos(golden: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((golden / "images").glob("*.png"))[:4]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter, merged and exported in float32."""
    golden, out = golden_folder(), tmp_path_factory.mktemp("exported") / "hf"
    export_hf(str(golden / tiny.ADAPTER), str(golden / tiny.LANGUAGE), out, dtype="float32")
    return out


def test_transformers_alone_answers_the_same(golden: Path, exported: Path) -> None:
    theirs, report = LlavaForConditionalGeneration.from_pretrained(
        exported, output_loading_info=True, dtype=torch.float32
    )
    assert not any(report.values())
    processor = AutoProcessor.from_pretrained(exported)
    slow, ours, images, _ = load_pretrained_model(
        golden / tiny.ADAPTER, golden / tiny.LANGUAGE, device="cpu", dtype="float32"
    )
    for image in photos(golden):
        for prompt in PROMPTS:
            batch = processor(images=image, text=prompt, return_tensors="pt")
            ids = tokenizer_image_token(prompt, slow, return_tensors="pt")[None]
            pixels = process_images([image], images, ours.config)
            assert isinstance(pixels, torch.Tensor)
            assert torch.equal(batch["pixel_values"], pixels)
            with torch.no_grad():
                wanted = ours(input_ids=ids, images=pixels).logits
                found = theirs(**batch).logits
                assert torch.equal(found[..., : wanted.shape[-1]], wanted)
                assert torch.equal(found[..., wanted.shape[-1]], wanted[..., 0])  # never the only largest
                answers = theirs.generate(**batch, max_new_tokens=12, do_sample=False)
                tokens = ours.generate(ids, images=pixels, max_new_tokens=12, do_sample=False)
            assert answers[0, batch["input_ids"].shape[1] :].tolist() == tokens[0, -12:].tolist()


def test_the_card_names_the_library_that_loads_the_folder(exported: Path) -> None:
    card = ModelCard.load(exported / "README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
    }
    assert "LlavaForConditionalGeneration" in card.text


def test_the_way_back_changes_nothing(golden: Path, exported: Path, tmp_path: Path) -> None:
    import_hf(str(exported), tmp_path / "own")
    again = tmp_path / "again"
    export_hf(str(tmp_path / "own"), None, again, dtype="float32")
    first, second = load_file(exported / "model.safetensors"), load_file(again / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (exported / name).read_bytes() == (again / name).read_bytes(), name
    assert tiny.fields(exported / "preprocessor_config.json") == tiny.fields(
        again / "preprocessor_config.json"
    )
    assert load_tokenizer(tmp_path / "own").legacy is load_tokenizer(golden / tiny.LANGUAGE).legacy


def test_what_transformers_saves_is_read_too(exported: Path, tmp_path: Path) -> None:
    """It has other names than published folders, and one file for processor and image processor."""
    LlavaForConditionalGeneration.from_pretrained(exported).save_pretrained(tmp_path / "saved")
    AutoProcessor.from_pretrained(exported).save_pretrained(tmp_path / "saved")
    with raises_code("missing-tokenizer"):
        import_hf(str(tmp_path / "saved"), tmp_path / "own")
    import_hf(str(tmp_path / "saved"), tmp_path / "own", tokenizer=str(exported))
    import_hf(str(exported), tmp_path / "wanted")
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("own", "wanted"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_every_name_of_a_weight_is_known(exported: Path) -> None:
    """Published folders, a state dict of transformers 5, and what it saves of a model made from a config."""
    published = load_file(exported / "model.safetensors")
    model = LlavaForConditionalGeneration.from_pretrained(exported, dtype=torch.float32)
    wanted = from_hf(published)
    bare = {
        name.replace("vision_tower.vision_model.", "vision_tower."): published[name] for name in published
    }
    for tensors in (model.state_dict(), bare):
        found = from_hf(tensors)
        assert tensors.keys() != published.keys()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert to_hf(wanted).keys() == published.keys()
    with raises_code("unknown-weight"):
        from_hf({"image_newline": torch.zeros(1)})


def test_an_adapter_is_kept_for_peft(golden: Path, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    export_hf(
        str(golden / tiny.ADAPTER), str(golden / tiny.LANGUAGE), out, dtype="float32", keep_adapter=True
    )
    base = LlavaForConditionalGeneration.from_pretrained(out, dtype=torch.float32)
    batch = AutoProcessor.from_pretrained(out)(images=photos(golden)[0], text=PROMPTS[0], return_tensors="pt")
    with torch.no_grad():
        without = base(**batch).logits
        found = PeftModel.from_pretrained(base, out / "adapter")(**batch).logits
        wanted = LlavaForConditionalGeneration.from_pretrained(exported, dtype=torch.float32)(**batch).logits
    assert (found - wanted).abs().max() < 1e-4
    assert (without - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("folder", TOKENIZERS)
def test_the_tokenizer_gives_the_originals_ids(golden: Path, folder: str) -> None:
    slow = load_tokenizer(golden / folder)
    fast = make_fast_tokenizer(slow)
    facts = tiny.fields(golden / "ii_tokenization.json")
    frozen = next(
        entry for entry in facts["tokenizers"].values() if Path(entry["path"]).name == Path(folder).name
    )
    image = fast.convert_tokens_to_ids("<image>")
    for prompt, ids in zip(facts["prompts"], frozen["image_token_ids"], strict=True):
        assert fast(prompt).input_ids == [image if i == IMAGE_TOKEN_INDEX else i for i in ids], prompt
    parts = [
        "the",
        " ",
        "  ",
        "\n",
        "cat",
        "<image>",
        "</s>",
        "<s>",
        "!",
        "é",
        "日",
        "▁",
        "0",
        "\t",
        ".",
        "USER:",
    ]
    draw = random.Random(7)
    require_equal_ids(
        slow, fast, tuple("".join(draw.choices(parts, k=draw.randint(1, 16))) for _ in range(500))
    )


@pytest.mark.parametrize("name", sorted(conv_templates))
def test_the_chat_template_is_the_conversations(name: str) -> None:
    conversation = conv_templates[name].copy()
    if name == "plain" or "mmtag" in name or name == "v0_plain":
        with raises_code("no-chat-template"):
            make_chat_template(conversation)
        return
    conversation.messages = []
    questions = ["What is it?", "Why?\nSay it."]
    messages = []
    for index, question in enumerate(questions):
        opening = "<image>\n" if index == 0 else ""
        conversation.append_message(conversation.roles[0], opening + question)
        text = {"type": "text", "text": question}
        messages.append({"role": "user", "content": [*[{"type": "image"}] * (index == 0), text]})
        answer = "A cat." if index == 0 else None
        conversation.append_message(conversation.roles[1], answer)
        if answer:
            messages.append({"role": "assistant", "content": answer})
    template = Environment().from_string(make_chat_template(conversation))
    assert template.render(messages=messages, add_generation_prompt=True) == conversation.get_prompt()


def test_what_cannot_be_exported_is_refused(golden: Path, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with raises_code("not-multimodal"):
        export_hf(str(golden / tiny.LANGUAGE), None, out)
    with raises_code("not-an-adapter"):
        export_hf(str(golden / tiny.LANGUAGE), None, out, keep_adapter=True)
    with raises_code("output-exists"):
        export_hf(str(golden / tiny.ADAPTER), str(golden / tiny.LANGUAGE), exported)
    tiny.write_config(tmp_path / "other", golden, tiny.PROJECTOR, image_aspect_ratio="anyres")
    (tmp_path / "other/mm_projector.bin").write_bytes(
        (golden / tiny.PROJECTOR / "mm_projector.bin").read_bytes()
    )
    with raises_code("not-exportable"):
        export_hf(str(tmp_path / "other"), str(golden / tiny.LANGUAGE), out)
    with raises_code("not-huggingface-format"):
        import_hf(str(golden / tiny.LANGUAGE), out)
    assert not out.exists()
