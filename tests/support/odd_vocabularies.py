"""SentencePiece vocabularies unlike LLaMA's, trained in a moment: prompts and labels must suit them too."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import sentencepiece

CORPUS = (
    """USER: What is this? ASSISTANT: Yes</s>USER: And that? ASSISTANT: It is a cat on a mat.</s>
A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers.
<|im_start|>user
Hello there<|im_end|><|im_start|>assistant
Hello</s> ### Human: Hi ### Assistant: a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9
[INST] Hello there [/INST] Yes No Left Right black white dog dogs red 12 345 6789
""".splitlines()
    * 20
)

KINDS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"},
    "unigram": {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc"},
    "across_spaces": {"model_type": "bpe", "split_by_whitespace": False, "split_by_unicode_script": False},
    "characters": {"model_type": "char", "remove_extra_whitespaces": False},
}


def write_vocabulary(folder: Path, kind: str) -> Path:
    """Train the vocabulary `kind` into `folder`/tokenizer.model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=360,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **KINDS[kind],
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """For another process, which imports this light module to find it."""
    return list(tokenizer(text).input_ids)
