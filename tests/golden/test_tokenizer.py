"""The tokenizer gives the ids and texts of transformers 4.37, in every place where a tokenizer is used."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AddedToken, DataCollatorWithPadding, Trainer, TrainingArguments

from llava.prompts.encode import tokenizer_image_token
from llava.tokenizer import LlamaSentencePieceTokenizer, load_tokenizer
from support.errors import raises_code
from support.nasty import CASES, digest, nasty_strings
from support.odd_vocabularies import KINDS, ids_of, write_vocabulary
from support.shared_data import require_shared

MADE_BY_4_37 = json.loads((Path(__file__).parents[1] / "data/tokenizer_4_37.json").read_text())
MODELS = ("tiny", "32k_legacy_false", "32k_legacy_true", "32k_legacy_absent")


def add_usual_tokens(tokenizer: Any) -> None:
    """What the original's training adds to a vocabulary, and two ordinary words."""
    tokenizer.add_tokens(["<im_patch>"], special_tokens=True)
    tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["foo", "xyzzy"])


@pytest.fixture
def small(tmp_path: Path) -> LlamaSentencePieceTokenizer:
    return load_tokenizer(write_vocabulary(tmp_path / "small", "bpe"), legacy=False)


# ---- the original's ids


@pytest.mark.parametrize("model", MODELS)
def test_ids_and_texts_are_those_of_the_golden_file(golden: Path, model: str) -> None:
    record = json.loads((golden / "ii_tokenization.json").read_text())
    wanted = record["tokenizers"][model]
    tokenizer = load_tokenizer(golden / wanted["path"])
    assert tokenizer.legacy == wanted["legacy"]
    ids = [tokenizer(text).input_ids for text in record["plain_strings"]]
    assert ids == wanted["plain_ids"]
    assert [tokenizer.decode(one, skip_special_tokens=True) for one in ids] == wanted["decode_skip_special"]
    assert [tokenizer.decode(one) for one in ids] == wanted["decode_full"]
    without_bos = [one[1:] for one in ids]
    assert tokenizer.batch_decode(without_bos, skip_special_tokens=True) == wanted["batch_decode_no_bos"]
    prompts = [tokenizer_image_token(prompt, tokenizer) for prompt in record["prompts"]]
    assert prompts == wanted["image_token_ids"]


@pytest.mark.parametrize(
    "run", MADE_BY_4_37["runs"], ids=lambda run: f"{run['folder']}-{run['legacy']}-{run['added']}"
)
def test_nasty_text_has_the_ids_and_decodes_of_4_37(golden: Path, run: dict[str, Any]) -> None:
    settings = {} if run["legacy"] is None else {"legacy": run["legacy"]}
    tokenizer = load_tokenizer(require_shared(golden / run["folder"]), **settings)
    if run["added"]:
        add_usual_tokens(tokenizer)
    assert len(tokenizer) == run["length"]
    assert [tokenizer(text).input_ids for text in CASES] == run["ids_of_cases"]
    rows = []
    for text in nasty_strings(4000):
        ids = tokenizer(text).input_ids
        rows.append(
            [
                ids,
                tokenizer.decode(ids),
                tokenizer.decode(ids, skip_special_tokens=True),
                tokenizer.decode(ids[2:], skip_special_tokens=True),
            ]
        )
    assert [digest(rows[start : start + 50]) for start in range(0, 4000, 50)] == run["digests_of_50"]


def test_the_digests_would_notice_one_wrong_id(golden: Path) -> None:
    tokenizer = load_tokenizer(golden / "weights/tiny-vicuna-v1.5")
    ids = [tokenizer(text).input_ids for text in nasty_strings(50)]
    changed = copy.deepcopy(ids)
    changed[31][-1] += 1
    assert digest(ids) != digest(changed)


@pytest.mark.parametrize(("legacy", "is_legacy"), [(None, True), (True, True), (False, False)])
def test_an_absent_legacy_means_true(tmp_path: Path, legacy: bool | None, is_legacy: bool) -> None:
    folder = write_vocabulary(tmp_path, "bpe")
    if legacy is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.legacy is is_legacy
    after_end = tokenizer.tokenize("a</s>b")
    assert after_end[after_end.index("</s>") + 1].startswith("▁") is is_legacy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("legacy", [True, False])
def test_every_vocabulary_reads_back_what_it_wrote(tmp_path: Path, kind: str, legacy: bool) -> None:
    tokenizer = load_tokenizer(write_vocabulary(tmp_path, kind), legacy=legacy)
    for text in ("What is this? Yes", "A chat between a user and an assistant.", "dogs on a mat"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


# ---- as any transformers tokenizer


def test_padding_and_truncation_of_a_batch(small: LlamaSentencePieceTokenizer) -> None:
    small.pad_token = small.unk_token
    batch = small(
        ["Yes", "What is this? Yes"], padding=True, truncation=True, max_length=6, return_tensors="pt"
    )
    assert batch.input_ids.shape == (2, 6)
    assert batch.input_ids[0, -1] == small.pad_token_id == 0
    assert batch.attention_mask[0].sum() == len(small("Yes").input_ids)
    small.padding_side = "left"
    assert small(["Yes", "What is this?"], padding=True).input_ids[0][0] == 0


def test_without_a_padding_token_padding_is_refused(small: LlamaSentencePieceTokenizer) -> None:
    assert small.pad_token is None
    assert small.pad_token_id is None
    with pytest.raises(ValueError, match="padding token"):
        small(["a", "b c"], padding=True)


def test_added_tokens_get_the_next_ids_and_stay_whole(small: LlamaSentencePieceTokenizer) -> None:
    size = len(small)
    assert small.add_tokens(["<im_patch>"], special_tokens=True) == 1
    assert small.add_tokens(["<im_patch>"], special_tokens=True) == 0
    assert small.add_special_tokens({"pad_token": "[PAD]"}) == 1
    assert (len(small), small.vocab_size) == (size + 2, size)
    assert small("x<im_patch>[PAD]").input_ids[-2:] == [size, size + 1]
    assert small.pad_token_id == size + 1
    assert small.decode([size, 1, size + 1], skip_special_tokens=True) == ""


def test_tokens_that_overlap_split_at_the_longest_first(small: LlamaSentencePieceTokenizer) -> None:
    small.add_tokens(["<im", "<im_start>", "start>x", "im_"])
    pieces = [piece for piece in small.tokenize("<im_start>x<im_im_") if piece != "▁"]
    assert pieces == ["<im_start>", "x", "<im", "_", "im_"]


def test_an_id_outside_the_vocabulary_is_refused(small: LlamaSentencePieceTokenizer) -> None:
    for index in (-200, len(small)):
        with pytest.raises(IndexError, match=f"token id {index} is outside"):
            small.decode([1, index])


def test_bos_and_eos_follow_the_settings(tmp_path: Path) -> None:
    folder = write_vocabulary(tmp_path, "bpe")
    tokenizer = load_tokenizer(folder, add_bos_token=False, add_eos_token=True)
    ids = tokenizer("Yes").input_ids
    assert ids[0] != tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.get_special_tokens_mask([7, 8]) == [0, 0, 1]
    assert tokenizer.get_special_tokens_mask([2, 8], already_has_special_tokens=True) == [1, 0]
    assert tokenizer("Yes", "No").input_ids.count(tokenizer.eos_token_id) == 2


def test_tokens_may_strip_the_space_beside_them(small: LlamaSentencePieceTokenizer) -> None:
    small.add_tokens([AddedToken("<l>", lstrip=True), AddedToken("<r>", rstrip=True)])
    assert small("a  <l>b").input_ids == small("a<l>b").input_ids
    assert small("a<r>  b").input_ids == small("a<r>b").input_ids


def test_copies_pickles_and_other_processes_give_the_same_ids(small: LlamaSentencePieceTokenizer) -> None:
    add_usual_tokens(small)
    text = " foo <im_patch>a</s>b  [PAD]▁"
    wanted = small(text).input_ids
    shutil.rmtree(Path(small.vocab_file).parent)  # a copy must not need the folder any more
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert twin(text).input_ids == wanted
        assert len(twin) == len(small)
        assert twin.pad_token == "[PAD]"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(ids_of, (small, text)) == wanted


def test_a_trainer_pads_with_it_and_saves_it(small: LlamaSentencePieceTokenizer, tmp_path: Path) -> None:
    small.pad_token = small.unk_token

    class OneWeight(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.weight * attention_mask.sum()).mean()}

    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, report_to="none", use_cpu=True
    )
    rows = [dict(small(text)) for text in ("Yes", "What is this?")]
    trainer = Trainer(
        OneWeight(),
        arguments,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(small),
        processing_class=small,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert load_tokenizer(tmp_path / "saved")("a</s>b").input_ids == small("a</s>b").input_ids


# ---- folders


@pytest.mark.parametrize("legacy", [True, False])
def test_a_saved_folder_reads_back_the_same(tmp_path: Path, legacy: bool) -> None:
    first = load_tokenizer(
        write_vocabulary(tmp_path / "a", "bpe"), legacy=legacy, model_max_length=77, padding_side="left"
    )
    add_usual_tokens(first)
    first.save_pretrained(tmp_path / "b")
    for second in (
        load_tokenizer(tmp_path / "b"),
        LlamaSentencePieceTokenizer.from_pretrained(tmp_path / "b"),
    ):
        texts = nasty_strings(200)
        assert [second(text).input_ids for text in texts] == [first(text).input_ids for text in texts]
        assert second.get_added_vocab() == first.get_added_vocab()
        assert second.all_special_tokens == first.all_special_tokens
        assert (second.legacy, second.model_max_length, second.padding_side) == (legacy, 77, "left")


def test_a_saved_folder_is_spelt_as_4_37_reads_it(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_vocabulary(tmp_path / "a", "bpe"))
    size = len(tokenizer)
    tokenizer.add_tokens(["<im_patch>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "b")
    config = json.loads((tmp_path / "b/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "LlamaTokenizer"
    assert config["legacy"] is True
    assert config["additional_special_tokens"] == ["<im_patch>"]
    assert config["added_tokens_decoder"][str(size)]["special"] is True
    assert (config["add_bos_token"], config["add_eos_token"], config["bos_token"]) == (True, False, "<s>")
    assert not {"extra_special_tokens", "backend", "is_local", "local_files_only", "vocab_file"} & set(config)
    special = json.loads((tmp_path / "b/special_tokens_map.json").read_text())
    assert special["eos_token"]["content"] == "</s>"
    assert special["additional_special_tokens"][0]["content"] == "<im_patch>"
    assert json.loads((tmp_path / "b/added_tokens.json").read_text()) == {"<im_patch>": size}


def test_saving_over_a_folder_leaves_no_old_added_tokens(tmp_path: Path) -> None:
    plain = load_tokenizer(write_vocabulary(tmp_path / "a", "bpe"))
    grown = copy.deepcopy(plain)
    add_usual_tokens(grown)
    grown.save_pretrained(tmp_path / "b")
    plain.save_pretrained(tmp_path / "b")
    assert len(load_tokenizer(tmp_path / "b")) == len(plain)


OLD = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def test_folders_of_older_versions_are_read(tmp_path: Path) -> None:
    folder = write_vocabulary(tmp_path, "bpe")
    size = len(load_tokenizer(folder))
    config: dict[str, object] = {
        name: {"__type": "AddedToken", "content": text, **OLD}
        for name, text in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    config |= {"legacy": False, "pad_token": None, "additional_special_tokens": ["<im_patch>"]}
    special = {"pad_token": "[PAD]", "additional_special_tokens": ["<im_patch>", "<im_start>"]}
    added = {"<im_patch>": size, "<im_start>": size + 1, "[PAD]": size + 2}
    for name, content in (
        ("tokenizer_config", config),
        ("special_tokens_map", special),
        ("added_tokens", added),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == size + 3
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[PAD]", size + 2)
    assert set(tokenizer.all_special_tokens) == {"<s>", "</s>", "<unk>", "[PAD]", "<im_patch>", "<im_start>"}
    assert tokenizer("<im_start>").input_ids[-1] == size + 1


def test_a_tokenizer_json_beside_the_model_changes_nothing(tmp_path: Path) -> None:
    folder = write_vocabulary(tmp_path, "bpe")
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "legacy": False}))
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 5, "content": "Yes"}]}))
    for tokenizer in (load_tokenizer(folder), LlamaSentencePieceTokenizer.from_pretrained(folder)):
        assert tokenizer.add_bos_token is False
        assert tokenizer("Yes").input_ids[0] != tokenizer.bos_token_id


def test_a_folder_without_vocabulary_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with raises_code("missing-tokenizer") as error:
        load_tokenizer(tmp_path)
    assert "adapter_config.json" in str(error.value)


def test_a_name_that_is_neither_folder_nor_hub_id_is_one_line(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere"), "nobody/has-this-model"):
        with raises_code("unknown-model") as error:
            load_tokenizer(name)
        assert "\n" not in str(error.value)


def test_a_hub_id_is_read_from_the_cache_when_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    stored = tmp_path / "models--someone--vicuna"
    write_vocabulary(stored / "snapshots" / ("a" * 40), "bpe")
    (stored / "refs").mkdir()
    (stored / "refs/main").write_text("a" * 40)
    assert (
        load_tokenizer("someone/vicuna").decode(load_tokenizer("someone/vicuna")("Yes").input_ids[1:])
        == "Yes"
    )


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = write_vocabulary(tmp_path, "bpe")
    (folder / "tokenizer_config.json").write_text('{"legacy": ')
    with raises_code("not-json") as error:
        load_tokenizer(folder)
    assert "tokenizer_config.json:1:" in str(error.value)
    (folder / "tokenizer_config.json").write_text('{"legacy": "false"}')
    with raises_code("bad-tokenizer-config"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    with raises_code("bad-tokenizer-model"):
        load_tokenizer(folder)
