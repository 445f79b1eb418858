"""Makes the demo's SentencePiece vocabulary: BPE with byte fallback, each word of the world one piece."""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tinyworld.layouts import scenes
from tinyworld.questions import LETTERS, TYPES, candidates_of

from llava.conversation import conv_templates
from llava.files import atomic_write, write_json
from llava.prompts.wording import LETTER_SUFFIX, SHORT_SUFFIX

PIECES = 704
"""Just enough for every word to be a piece of its own; the command checks it."""
_SAMPLE = 300


def words() -> list[str]:
    """Every word of template, suffixes, questions and answers, with its leading space where it has one."""
    template = conv_templates["vicuna_v1"]
    first, second = template.roles
    fixed = [f" {template.system}", f" {first}:", f" {second}:", f"{first}:", LETTER_SUFFIX, SHORT_SUFFIX]
    for letter in LETTERS:
        fixed += [f"{letter}.", f" {letter}"]
    found = {word for text in fixed for word in re.findall(r" ?[^ ]+", text)}
    for _, scene in zip(range(_SAMPLE), scenes("recipe", 0), strict=False):
        for type_id in TYPES.values():
            for asked in candidates_of(scene, type_id):
                for text in (asked.text, f" {asked.short}", f" {asked.sentence}", asked.sentence):
                    found.update(re.findall(r" ?[^ .?]+|[.?]", text))
                found.update(f" {wrong}" for wrong in asked.wrong)
    return sorted(found)


def train(vocabulary: list[str]) -> bytes:
    """The serialized model. Trained without the dummy prefix (words carry their own space), used with it."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([word for word in vocabulary for _ in range(10)]),
        model_writer=stream,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        split_by_number=False,
        max_sentencepiece_length=32,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    reader = sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())
    split = [word for word in vocabulary if len(reader.encode(word)) > 1]
    assert not split, f"not one piece each, raise PIECES: {split}"
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(stream.getvalue())
    model.normalizer_spec.add_dummy_prefix = True
    return bytes(model.SerializeToString())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the language model's folder")
    out = parser.parse_args().out
    with atomic_write(out / "tokenizer.model", binary=True) as file:
        file.write(train(words()))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    write_json(out / "special_tokens_map.json", special)
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "padding_side": "right",
        "sp_model_kwargs": {},
    }
    write_json(out / "tokenizer_config.json", settings | special)


if __name__ == "__main__":
    main()
