"""Prompts and labels are the original's, and right where the original silenced a sample."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.conversation import conv_templates, render
from llava.errors import DataError
from llava.prompts import labels
from llava.prompts.encode import encode_prompt, tokenizer_image_token
from llava.prompts.labels import Supervised, place_image_token, supervise
from llava.prompts.wording import (
    LETTER_SUFFIX,
    SHORT_SUFFIX,
    ocr_line,
    options_block,
    with_image_line,
    with_suffix,
)
from llava.samples import parse_sample
from llava.schema import Sample, Turn
from llava.tokenizer import load_tokenizer
from support.errors import raises_code
from support.nasty import CASES, nasty_strings
from support.odd_vocabularies import KINDS, write_vocabulary
from support.shared_data import require_shared

FOLDERS = {
    "tiny": "weights/tiny-vicuna-v1.5",
    "32k_legacy_false": "tokenizer32k_legacy_false",
    "32k_legacy_true": "tokenizer32k_legacy_true",
    "llama": "tokenizer_llama",
}
VERSIONS = ("plain", "v0_plain", "v1", "v1_mmtag", "llava_llama_2", "mpt", "v0", "v0_mmtag")
EXACT = VERSIONS[:5]


@cache
def loaded(folder: Path, legacy: bool | None = None) -> Any:
    settings: dict[str, Any] = {} if legacy is None else {"legacy": legacy}
    return load_tokenizer(require_shared(folder), **settings)


@pytest.fixture
def llama(golden: Path) -> Any:
    return loaded(golden / "tokenizer_llama", False)


def sample_of(*texts: str, image: str | None = None) -> Sample:
    turns = tuple(Turn(("human", "gpt")[place % 2], text) for place, text in enumerate(texts))
    return Sample("s", turns, image)


def runs(result: Supervised) -> list[tuple[int, int]]:
    """The stretches [start, stop) that are trained on."""
    found, start = [], None
    for place, label in enumerate([*result.labels, -100]):
        if label != -100 and start is None:
            start = place
        if label == -100 and start is not None:
            found.append((start, place))
            start = None
    return found


def taught(result: Supervised, tokenizer: Any) -> list[str]:
    """The stretches that are trained on, as text."""
    return [
        tokenizer.decode([index for index in result.labels[start:stop] if index >= 0])
        for start, stop in runs(result)
    ]


def squeezed(text: str) -> str:
    """Decoding is free with spaces; the words and marks must be there."""
    return "".join(text.replace("▁", " ").split())


# ---- the original's ids and labels


@pytest.mark.parametrize("model", ["tiny", "32k_legacy_false", "32k_legacy_true"])
@pytest.mark.parametrize("version", VERSIONS)
def test_ids_and_labels_are_the_originals(golden: Path, model: str, version: str) -> None:
    record = json.loads((golden / "iii_preprocess.json").read_text())
    cases = {case["name"]: case for case in record["cases"]}
    tokenizer = loaded(golden / FOLDERS[model])
    seen: Counter[str] = Counter()
    for row in record["results"]:
        if (row["tok"], row["version"]) != (model, version):
            continue
        case = cases[row["case"]]
        turns = tuple(Turn(turn["from"], turn["value"]) for turn in case["conversations"])
        sample = Sample(row["case"], turns, "x.jpg" if case["has_image"] else None)

        def run(sample: Sample = sample, row: dict[str, Any] = row) -> Supervised:
            return supervise(
                sample,
                conv_templates[version],
                tokenizer,
                max_length=row["max_len"],
                mm_use_im_start_end=row["im_start_end"],
            )

        if "error" in row:
            with pytest.raises(DataError) as error:
                run()
            assert f"sample '{row['case']}'" in str(error.value)
            assert error.value.code in {"turns-do-not-alternate", "empty-first-turn", "wrong-turns"}
            seen["refused"] += 1
            continue
        result = run()
        assert result.input_ids == row["input_ids"], row["case"]
        if version in EXACT and not row["stdout"]:
            assert result.labels == row["labels"], row["case"]
            seen["exact"] += 1
        else:
            _check_supervision(result, sample, tokenizer, version, cut=row["max_len"] < 2048)
            seen["ours"] += 1
    assert seen["exact"] + seen["ours"] + seen["refused"] >= 34


def _check_supervision(
    result: Supervised, sample: Sample, tokenizer: Any, version: str, *, cut: bool
) -> None:
    """Every answer and its end mark, or a reason; for rows the original silenced or drifted on."""
    placed = labels._turns_in_order(sample, conv_templates[version], mm_use_im_start_end=False)
    text, spans = render(conv_templates[version], placed)
    if cut and sample.image is None:
        assert result.problem in (None, labels.ANSWER_CUT_AWAY)
        return
    if not spans:
        assert (result.problem, runs(result)) == (labels.NO_ANSWER, [])
        return
    # In mpt a token may reach from the end mark into the next turn's "<".
    got = [squeezed(one).removesuffix("<") for one in taught(result, tokenizer)]
    assert got == [squeezed(text[start:end].replace("<image>", "")) for start, end in spans]


@pytest.mark.parametrize("legacy", [False, True])
def test_real_records_with_the_real_vocabulary(golden: Path, realdata: Path, legacy: bool) -> None:
    rows = (realdata / "mix665k/llava_v1_5_mix1k.jsonl").read_text(encoding="utf-8").splitlines()
    wanted = json.loads(require_shared(golden / "xii_mix665k_real.json").read_text())[
        f"legacy_{str(legacy).lower()}"
    ]
    tokenizer = loaded(golden / "tokenizer_llama", legacy)
    assert len(wanted) == 500
    for row in wanted:
        sample = parse_sample(json.loads(rows[row["row"]]), "mix1k")
        assert sample.id == row["id"]
        result = supervise(sample, conv_templates["v1"], tokenizer, max_length=2048)
        assert result.input_ids == row["input_ids"], row["row"]
        assert runs(result) == [tuple(span) for span in row["supervised"]], row["row"]
        assert result.problem is None


# ---- one by one, on the real vocabulary (upstream's published facts)

S = "A chat between a curious user and an artificial intelligence assistant. "


def test_three_rounds_have_the_published_ids(llama: Any, golden: Path) -> None:
    sample = sample_of(
        "<image>\nIs it red?\nAnswer the question using a single word or phrase.",
        *("Yes", "What is he on?", "Skateboard", "How many?", "5"),
        image="x.jpg",
    )
    result = supervise(sample, conv_templates["v1"], llama, max_length=2048)
    assert len(result.input_ids) == 89
    stretches = [result.labels[start:stop] for start, stop in runs(result)]
    assert stretches == [[3869, 2], [4971, 403, 3377, 2], [29871, 29945, 2]]
    legacy = supervise(
        sample, conv_templates["v1"], loaded(golden / "tokenizer_llama", True), max_length=2048
    )
    assert len(legacy.input_ids) == 91


@pytest.mark.parametrize(
    ("answer", "pieces"),
    [
        ("Yes ", ["▁Yes", "▁", "</s>"]),
        ("\nYes", ["▁", "<0x0A>", "Yes", "</s>"]),
        ("5", ["▁", "5", "</s>"]),
        ("一只猫", ["▁", "一", "只", "<0xE7>", "<0x8C>", "<0xAB>", "</s>"]),
        ("a\r\nb", ["▁a", "\r", "<0x0A>", "b", "</s>"]),
        ("say </s> now", ["▁say", "▁", "</s>", "▁now", "</s>"]),
        ("I am ASSISTANT: x", ["▁I", "▁am", "▁A", "SS", "IST", "ANT", ":", "▁x", "</s>"]),
        ("<unk>", ["▁", "<unk>", "</s>"]),
        ("a\u200bb", ["▁a", "\u200b", "b", "</s>"]),
    ],
)
def test_an_answer_is_supervised_to_its_end(llama: Any, answer: str, pieces: list[str]) -> None:
    for image in (None, "x.jpg"):
        question = "<image>\nHello" if image else "Hello"
        result = supervise(
            sample_of(question, answer, "More?", "No", image=image),
            conv_templates["v1"],
            llama,
            max_length=2048,
        )
        (start, stop), second = runs(result)
        assert llama.convert_ids_to_tokens(result.labels[start:stop]) == pieces
        assert llama.convert_ids_to_tokens(result.labels[slice(*second)]) == ["▁No", "</s>"]


def test_plain_supervises_all_behind_the_image(llama: Any) -> None:
    result = supervise(
        sample_of("Say.\n<image>", "a cat", image="x.jpg"), conv_templates["plain"], llama, max_length=8
    )
    assert result.input_ids == [1, -200, 263, 6635, 13]
    assert result.labels == [-100, -100, 263, 6635, 13]


# ---- named problems


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        (sample_of("Hello", ""), labels.NO_ANSWER),
        (sample_of("Hello"), labels.NO_ANSWER),
        (sample_of("word " * 200, "Yes"), labels.ANSWER_CUT_AWAY),
        (sample_of("What is it?", "A cat", image="x.jpg"), labels.IMAGE_NOT_IN_TEXT),
        (
            Sample("s", (Turn("gpt", "<image> hi"), Turn("human", "a"), Turn("gpt", "b")), "x.jpg"),
            labels.IMAGE_NOT_IN_TEXT,
        ),
    ],
)
def test_a_sample_that_teaches_nothing_says_why(llama: Any, sample: Sample, problem: str) -> None:
    result = supervise(sample, conv_templates["v1"], llama, max_length=100)
    assert result.problem == problem
    assert set(result.labels) == {-100}
    assert len(result.labels) == len(result.input_ids)


def test_only_text_is_cut_and_its_labels_with_it(llama: Any) -> None:
    long = sample_of("Hello", "word " * 200)
    result = supervise(long, conv_templates["v1"], llama, max_length=60)
    assert len(result.input_ids) == len(result.labels) == 60
    assert result.labels[-1] == result.input_ids[-1]
    with_image = sample_of("<image>\nHello", "word " * 200, image="x.jpg")
    assert len(supervise(with_image, conv_templates["v1"], llama, max_length=60).input_ids) > 200


def test_turns_that_do_not_alternate_are_refused_by_name(llama: Any) -> None:
    sample = Sample(17, (Turn("human", "a"), Turn("human", "b")))
    with raises_code("turns-do-not-alternate", DataError) as error:
        supervise(sample, conv_templates["v1"], llama, max_length=None)
    assert "sample 17: turn 1" in str(error.value)


# ---- the two ways of finding an answer agree with each other and with the characters


def nasty_samples(count: int) -> list[Sample]:
    texts = [*nasty_strings(6 * count, seed=11), *CASES]
    texts = [text.replace("<image>", "<img>") for text in texts]
    rng = random.Random(3)
    samples = []
    for place in range(count):
        turns = [texts[int(rng.random() * len(texts))] for _ in range(2 + int(rng.random() * 6))]
        image = "x.jpg" if place % 2 else None
        samples.append(sample_of(*([f"<image>\n{turns[0]}", *turns[1:]] if image else turns), image=image))
    return samples


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("version", ["v1", "llava_llama_2", "mistral_instruct"])
def test_rounds_and_prefixes_find_the_same_ids(golden: Path, version: str, legacy: bool) -> None:
    tokenizer = loaded(golden / "tokenizer_llama", legacy)
    for sample in nasty_samples(150):
        turns = labels._turns_in_order(sample, conv_templates[version], mm_use_im_start_end=False)
        if version != "v1" and not turns[0].text:
            continue
        text, spans = render(conv_templates[version], turns)
        encode = _encoder(sample, tokenizer)
        ids = encode(text)
        by_round = labels._spans_by_round(text, spans, ids, encode, tokenizer)
        assert by_round is not None
        assert by_round == labels._spans_by_prefix(text, spans, ids, encode, tokenizer)


def _encoder(sample: Sample, tokenizer: Any) -> Callable[[str], list[int]]:
    if sample.image is not None:
        return lambda text: encode_prompt(text, tokenizer)
    return lambda text: tokenizer(text).input_ids


def test_supervised_ids_are_those_that_spell_the_answers(llama: Any) -> None:
    """An independent count: LLaMA's pieces without normalisation spell the text byte by byte."""
    for sample in nasty_samples(200)[::2]:
        text, spans = render(conv_templates["v1"], sample.turns)
        text = text.replace("▁", " ")  # the same length in characters, and the same to the tokenizer
        result = supervise(sample, conv_templates["v1"], llama, max_length=None)
        spelt, begins = b"", []
        for piece in llama.convert_ids_to_tokens(result.input_ids[1:]):
            begins.append(len(spelt))
            is_byte = len(piece) == 6 and piece.startswith("<0x")
            spelt += bytes([int(piece[3:5], 16)]) if is_byte else piece.replace("▁", " ").encode()
        if "<unk>" not in text:  # what has no piece at all spells as <unk>
            assert spelt.decode() == " " + text
        inside = [
            any(
                len(text[:start].encode()) + 1 <= begin < len(text[:end].encode()) + 1 for start, end in spans
            )
            for begin in begins
        ]
        assert [label != -100 for label in result.labels[1:]] == inside


def original_arithmetic(text: str, sample: Sample, tokenizer: Any, separator: str, max_length: int) -> Any:
    """Labels by the original's rule (each round measured alone, lengths added up); None where it gives up."""
    encode = _encoder(sample, tokenizer)
    ids = encode(text) if sample.image is not None else encode(text)[:max_length]
    made, place = [-100, *ids[1:]], 1
    for number, said in enumerate(text.split("</s>")):
        halves = said.split(separator)
        if not said or len(halves) != 2:
            break
        # "USER" behind "</s>" is one piece where "USER" at a start is two, unless legacy.
        fewer = int(number > 0 and not tokenizer.legacy and "ASSISTANT" in separator)
        question = len(encode(halves[0] + separator)) - 2 - fewer
        made[place : place + question] = [-100] * len(made[place : place + question])
        place += len(encode(said)) - fewer
    made[place:] = [-100] * len(made[place:])
    agrees = place >= max_length or place == sum(index != tokenizer.unk_token_id for index in ids)
    return made if agrees else None


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("version", "separator"),
    [("v1", " ASSISTANT: "), ("v1_mmtag", " ASSISTANT: "), ("llava_llama_2", "[/INST] ")],
)
def test_where_no_text_holds_a_mark_the_originals_arithmetic_agrees(
    golden: Path, version: str, separator: str, legacy: bool
) -> None:
    tokenizer, template = loaded(golden / "tokenizer_llama", legacy), conv_templates[version]
    compared = 0
    for sample in nasty_samples(500):
        said = " ".join(turn.text for turn in sample.turns)
        if (
            any(mark in said for mark in ("</s>", "<s>", "ASSISTANT:", "INST]", "<unk>"))
            or not sample.turns[0].text
        ):
            continue
        turns = labels._turns_in_order(sample, template, mm_use_im_start_end=False)
        for max_length in (2048, 60):
            wanted = original_arithmetic(render(template, turns)[0], sample, tokenizer, separator, max_length)
            if wanted is not None and (sample.image is None or max_length == 2048):
                assert supervise(sample, template, tokenizer, max_length=max_length).labels == wanted
                compared += 1
    assert compared > 150


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["v1", "llava_llama_2", "mpt", "v0"])
def test_any_vocabulary_is_supervised_or_named(tmp_path: Path, kind: str, version: str) -> None:
    tokenizer = load_tokenizer(write_vocabulary(tmp_path, kind), legacy=False)
    sample = sample_of("What is this?", "Yes", "Hello there", "It is a cat", "And that?", "12 345")
    result = supervise(sample, conv_templates[version], tokenizer, max_length=None)
    if kind == "across_spaces" and result.problem is not None:
        # Its pieces cross the space before an answer ("T:▁Yes"), so no id is the answer's first.
        assert result.problem == labels.BOUNDARY_UNCLEAR
        return
    end = {"v1": "</s>", "llava_llama_2": "</s>", "mpt": "<|im_end|>", "v0": "###"}[version]
    said = [squeezed(one).partition(end) for one in taught(result, tokenizer)]
    assert [before + mark for before, mark, _ in said] == ["Yes" + end, "Itisacat" + end, "12345" + end]
    # A token may reach from the end mark into what opens the next turn.
    assert all(("<|im_start|>" if version == "mpt" else "Human:").startswith(into) for _, _, into in said)


def test_a_piece_across_the_start_of_an_answer_is_a_named_problem(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_vocabulary(tmp_path, "across_spaces"), legacy=False)
    result = supervise(sample_of("What is this?", "Yes"), conv_templates["v1"], tokenizer, max_length=None)
    assert any(":▁Yes" in piece for piece in tokenizer.convert_ids_to_tokens(result.input_ids))
    assert result.problem == labels.BOUNDARY_UNCLEAR
    assert set(result.labels) == {-100}


# ---- where the image goes


@pytest.mark.parametrize(
    ("text", "version", "frame", "wanted"),
    [
        ("  a <image> b <image>  ", "v1", False, "<image>\na  b"),
        ("<image>\n", "v1", False, "<image>"),
        ("no image", "v1", True, "no image"),
        ("a\n<image>", "v1_mmtag", False, "<Image><image></Image>\na"),
        ("a\n<image>", "v1", True, "<im_start><image><im_end>\na"),
        ("a\n<image>", "v0_mmtag", True, "<Image><im_start><image><im_end></Image>\na"),
    ],
)
def test_the_image_token_moves_to_the_front_once(text: str, version: str, frame: bool, wanted: str) -> None:
    assert place_image_token(text, version, mm_use_im_start_end=frame) == wanted


def test_an_image_is_one_id_between_texts(llama: Any) -> None:
    prompt = f"{S}USER: <image>\nWhat is this? ASSISTANT:"
    ids = encode_prompt(prompt, llama)
    assert ids.count(1) == ids.count(-200) == 1
    place = ids.index(-200)
    assert ids[place - 1 : place + 3] == [29871, -200, 29871, 13]
    assert tokenizer_image_token(prompt, llama) == ids
    tensor = tokenizer_image_token(prompt, llama, return_tensors="pt")
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == ids
    assert -9 in tokenizer_image_token(prompt, llama, -9)
    with pytest.raises(ValueError, match="np"):
        tokenizer_image_token(prompt, llama, return_tensors="np")


def test_without_bos_no_id_is_dropped(golden: Path) -> None:
    tokenizer = load_tokenizer(require_shared(golden / "tokenizer_llama"), legacy=False, add_bos_token=False)
    assert encode_prompt("a<image>b", tokenizer) == [263, -200, 289]
    assert encode_prompt("<image><image>", tokenizer) == [-200, -200]


# ---- wording


def test_questions_are_worded_as_in_training() -> None:
    options = options_block(["red", "blue"])
    assert options == "A. red\nB. blue"
    assert with_suffix("Colour?", options, LETTER_SUFFIX) == (
        "Colour?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    )
    assert with_image_line(with_suffix("Colour?", SHORT_SUFFIX)) == (
        "<image>\nColour?\nAnswer the question using a single word or phrase."
    )
    assert ocr_line(["A", "B"]) == "Reference OCR token: A, B"
    assert ocr_line([]) == "Reference OCR token: "
