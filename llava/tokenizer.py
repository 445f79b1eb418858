"""LLaMA's SentencePiece tokenizer with the ids of transformers 4.37.

transformers 5 converts `tokenizer.model` to another algorithm, which splits runs of spaces and text next to
special tokens differently. A model needs the ids it was trained on, so this tokenizer calls SentencePiece.

Source: transformers 4.37.2, slow LlamaTokenizer (its ids, not its code), with `legacy` on and off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from sentencepiece import SentencePieceProcessor
from transformers import AddedToken, PreTrainedTokenizer

from llava.errors import CheckpointError
from llava.files import atomic_write, read_json, write_json

VOCAB_FILE = "tokenizer.model"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"

SPACE = "▁"  # SentencePiece's sign for a space inside a piece

# Appended to a serialized ModelProto, this sets normalizer_spec.add_dummy_prefix to false: protocol buffers
# merge concatenated messages (field 3 of the model, two bytes long; in it field 3, value 0).
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


def load_tokenizer(
    source: str | Path,
    *,
    model_max_length: int | None = None,
    padding_side: str | None = None,
    **settings: object,
) -> LlamaSentencePieceTokenizer:
    """Load the tokenizer of a model folder or hub id.

    Args:
        source: A folder with `tokenizer.model`, or a hub id (downloaded, or read from the cache if offline).
        model_max_length: Ids per text when truncating; the folder's value if None.
        padding_side: "left" or "right"; the folder's value if None.
        settings: Further settings that override tokenizer_config.json, such as `legacy`.

    Raises:
        CheckpointError: There is no such folder or id, or no readable `tokenizer.model` in it.
        DataError: One of its JSON files is damaged.
    """
    folder = _local_folder(str(source))
    vocab_file = folder / VOCAB_FILE
    if not vocab_file.is_file():
        files = sorted(entry.name for entry in folder.iterdir())
        raise CheckpointError(
            f"{folder}: no {VOCAB_FILE}; it holds {', '.join(files) or 'nothing'}. Give the folder or "
            "hub id of the language model (a LoRA folder has no vocabulary: give its base)",
            code="missing-tokenizer",
        )
    for name in (CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE):
        if (folder / name).is_file():
            read_json(folder / name)  # the error of transformers does not name the file
    if model_max_length is not None:
        settings["model_max_length"] = model_max_length
    if padding_side is not None:
        settings["padding_side"] = padding_side
    return LlamaSentencePieceTokenizer.from_pretrained(str(folder), vocab_file=str(vocab_file), **settings)


def _local_folder(source: str) -> Path:
    """Return `source` if it is a folder; else download a hub id's tokenizer files and return their folder.

    Raises:
        CheckpointError: `source` is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        wanted = [VOCAB_FILE, CONFIG_FILE, SPECIAL_TOKENS_FILE, ADDED_TOKENS_FILE]
        return Path(snapshot_download(source, allow_patterns=wanted))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{source}: neither a folder nor a hub id that can be read ({reason})", code="unknown-model"
        ) from error


class _Splitter:
    """Splits text at added tokens, longest first, and keeps them: transformers' Trie as a regex."""

    def __init__(self, tokens: Sequence[str]) -> None:
        longest_first = sorted(filter(None, tokens), key=len, reverse=True)
        self._pattern = (
            re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None
        )

    def split(self, text: str) -> list[str]:
        if self._pattern is None:
            return [text] if text else []
        return [part for part in self._pattern.split(text) if part]


class LlamaSentencePieceTokenizer(PreTrainedTokenizer):
    """A `tokenizer.model` file with the interface of a transformers tokenizer.

    `legacy=None` means true, as in 4.37: text after a special token then gets a leading space.
    """

    vocab_files_names = {"vocab_file": VOCAB_FILE}  # noqa: RUF012 - transformers reads it from the class
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str,
        *,
        unk_token: str | AddedToken = "<unk>",
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "</s>",
        pad_token: str | AddedToken | None = None,
        legacy: bool | None = None,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        sp_model_kwargs: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if legacy not in (None, True, False):
            raise CheckpointError(
                f"{vocab_file}: legacy is {legacy!r} in {CONFIG_FILE}, wanted true, false or null",
                code="bad-tokenizer-config",
            )
        self.vocab_file = vocab_file
        self.legacy = True if legacy is None else legacy
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        self.sp_model_kwargs = sp_model_kwargs or {}
        self._model_bytes = Path(vocab_file).read_bytes()
        self._start_sentencepiece()
        # Two names for one list; files of one folder may use different ones.
        extra = [
            token
            for name in ("extra_special_tokens", "additional_special_tokens")
            for token in settings.pop(name, None) or ()
        ]
        super().__init__(
            unk_token=unk_token,
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            legacy=self.legacy,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            sp_model_kwargs=self.sp_model_kwargs,
            extra_special_tokens=list({str(token): token for token in extra}.values()),
            **settings,
        )
        # transformers added them by name only; add them again with their flags (such as lstrip). If two roles
        # share a token, the flags of the first role apply.
        flagged: dict[str, AddedToken] = {}
        for token in self._special_tokens_map.values():
            if isinstance(token, AddedToken):
                flagged.setdefault(token.content, token)
        self._add_tokens(list(flagged.values()), special_tokens=True)

    @classmethod
    def _from_pretrained(
        cls, resolved_vocab_files: dict[str, str | None], *rest: object, **settings: object
    ) -> LlamaSentencePieceTokenizer:
        # With a tokenizer.json beside tokenizer.model, transformers would ignore add_bos_token.
        resolved_vocab_files.pop("tokenizer_file", None)
        return super()._from_pretrained(resolved_vocab_files, *rest, **settings)

    def _start_sentencepiece(self) -> None:
        """Create the SentencePiece processor and the vocabulary from the model's bytes."""
        self.sp_model = SentencePieceProcessor(**self.sp_model_kwargs)
        try:
            self.sp_model.LoadFromSerializedProto(
                self._model_bytes + (b"" if self.legacy else _NO_DUMMY_PREFIX)
            )
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.vocab_file}: not a SentencePiece model ({len(self._model_bytes)} bytes). A file of "
                "some hundred bytes is a Git LFS pointer: download the file itself",
                code="bad-tokenizer-model",
            ) from error
        self._pieces: list[str] = self.sp_model.id_to_piece(list(range(self.sp_model.get_piece_size())))
        self._ids = {piece: index for index, piece in enumerate(self._pieces)}
        self._unk_index: int = self.sp_model.unk_id()

    # For data loader workers: a SentencePiece processor is not pickled but created from the model's bytes.
    def __getstate__(self) -> dict[str, object]:
        derived = ("sp_model", "_pieces", "_ids")
        return {key: value for key, value in self.__dict__.items() if key not in derived}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start_sentencepiece()
        self._ids.update(self._added_tokens_encoder)

    # ---- vocabulary

    @property
    def vocab_size(self) -> int:
        """The number of pieces of the model, without added tokens."""
        return len(self._pieces)

    def get_vocab(self) -> dict[str, int]:
        """Return the id of each piece, added tokens included."""
        return dict(self._ids)

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self._unk_index)

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        """Return the id of a piece, or of each; unknown pieces get the id of the unknown token."""
        if isinstance(tokens, str):
            return self._convert_token_to_id(tokens)
        return [self._ids.get(token, self._unk_index) for token in tokens]

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < len(self._pieces):
            raise IndexError(f"token id {index} is outside the vocabulary of {len(self)} tokens")
        return self._pieces[index]

    def _update_trie(self, unique_no_split_tokens: list[str] | None = None) -> None:
        self._ids.update(self._added_tokens_encoder)
        self.tokens_trie = _Splitter([*self._added_tokens_encoder, *(unique_no_split_tokens or ())])

    # ---- text to pieces

    def tokenize(self, text: str, **settings: object) -> list[str]:
        """Split `text` into pieces. Unless legacy, only its start gets a leading space."""
        if self.legacy or not text:
            return super().tokenize(text, **settings)
        pieces = super().tokenize(SPACE + text.replace(SPACE, " "), **settings)
        if len(pieces) > 1 and pieces[0] == SPACE and pieces[1] in self.all_special_tokens:
            return pieces[1:]
        return pieces

    def _tokenize(self, text: str, **settings: object) -> list[str]:
        if self.legacy or not text.startswith((SPACE, " ")):
            return self.sp_model.encode(text, out_type=str)
        # Without the dummy prefix SentencePiece drops a leading space, so put a token before it.
        prefix = str(self.unk_token)
        pieces = self.sp_model.encode(prefix + text, out_type=str)
        return pieces[len(self.sp_model.encode(prefix)) :]

    def _eventual_warn_about_too_long_sequence(self, *_: object) -> None:
        """Do not warn of long texts: callers truncate or refuse them themselves."""

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put each sequence between BOS and EOS, if the settings add them."""
        start, end = self._frame()
        second = [] if token_ids_1 is None else start + token_ids_1 + end
        return start + token_ids_0 + end + second

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Return 1 for BOS and EOS and 0 for text."""
        if already_has_special_tokens:
            special = set(self.all_special_ids)
            return [int(index in special) for index in token_ids_0]
        start, end = ([1] * len(ids) for ids in self._frame())
        second = [] if token_ids_1 is None else start + [0] * len(token_ids_1) + end
        return start + [0] * len(token_ids_0) + end + second

    def _frame(self) -> tuple[list[int], list[int]]:
        return [self.bos_token_id] * self.add_bos_token, [self.eos_token_id] * self.add_eos_token

    # ---- ids to text

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces into text; legacy puts a space before a special token that follows text."""
        if not tokens:
            return ""
        # Remove the leading space that the tokenizer added. The rest may not be a piece; SentencePiece would
        # copy it unchanged, so replace the space signs in it here.
        first = tokens[0].removeprefix(SPACE)
        tokens = [first if first in self._ids else first.replace(SPACE, " "), *tokens[1:]]
        special = set(self.all_special_tokens)
        text, after_special = "", False
        run: list[str] = []
        for position, token in enumerate(tokens):
            if token in special:
                gap = " " if self.legacy and position and not after_special else ""
                text += gap + self.sp_model.decode(run) + token
                run, after_special = [], True
            else:
                run.append(token)
                after_special = False
        return text + self.sp_model.decode(run)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
        **settings: object,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        added = self._added_outside_the_model()
        parts: list[str] = []
        run: list[str] = []
        for token in self.convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens):
            if token not in added:
                run.append(token)
                continue
            if between := self.convert_tokens_to_string(run):
                parts.append(between)
            run = []
            parts.append(token)
        if run:
            parts.append(self.convert_tokens_to_string(run))
        text = (" " if spaces_between_special_tokens else "").join(parts)
        clean = (
            self.clean_up_tokenization_spaces
            if clean_up_tokenization_spaces is None
            else clean_up_tokenization_spaces
        )
        return self.clean_up_tokenization(text) if clean else text

    def _added_outside_the_model(self) -> set[str]:
        """Return the added tokens that SentencePiece cannot decode; 4.37 puts spaces around them."""
        ordinary = set(self._added_tokens_encoder) - set(self.all_special_tokens)
        extra = {
            token
            for token in self.extra_special_tokens
            if self._convert_token_to_id(token) >= self.vocab_size
        }
        return ordinary | extra

    # ---- folder

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write `tokenizer.model` unchanged."""
        path = Path(save_directory) / (f"{filename_prefix}-{VOCAB_FILE}" if filename_prefix else VOCAB_FILE)
        with atomic_write(path, binary=True) as stream:
            stream.write(self._model_bytes)
        return (str(path),)

    def _save_pretrained(
        self,
        save_directory: str,
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """Rewrite a saved folder's files so that 4.37's LlamaTokenizer can read them."""
        folder, prefix = Path(save_directory), f"{filename_prefix}-" if filename_prefix else ""
        config = read_json(folder / (prefix + CONFIG_FILE))
        for only_in_5 in ("backend", "is_local", "local_files_only"):
            config.pop(only_in_5, None)
        config["additional_special_tokens"] = config.pop("extra_special_tokens", [])
        config |= {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        config |= {"legacy": self.legacy, "pad_token": self.pad_token, "tokenizer_class": "LlamaTokenizer"}
        if self.chat_template is not None:
            config["chat_template"] = (
                self.chat_template
            )  # transformers 5 writes it to a file that 4.37 does not read
        special: dict[str, object] = {
            key: self._flags(token) for key, token in self.special_tokens_map.items()
        }
        if self.extra_special_tokens:
            special["additional_special_tokens"] = [self._flags(token) for token in self.extra_special_tokens]
        added = {token: index for token, index in self.get_added_vocab().items() if index >= self.vocab_size}

        written = {
            CONFIG_FILE: config,
            SPECIAL_TOKENS_FILE: special,
            **({ADDED_TOKENS_FILE: added} if added else {}),
        }
        for name, content in written.items():
            write_json(folder / (prefix + name), content)
        if not added:
            (folder / (prefix + ADDED_TOKENS_FILE)).unlink(missing_ok=True)  # of an earlier save
        paths = (str(folder / (prefix + name)) for name in written)
        return (*dict.fromkeys((*file_names, *paths)), *self.save_vocabulary(save_directory, filename_prefix))

    def _flags(self, token: str) -> dict[str, object] | str:
        """Return an added token in the form of special_tokens_map.json."""
        index = self._added_tokens_encoder.get(token)
        if index is None:
            return token
        state = dict(self._added_tokens_decoder[index].__getstate__())
        state.pop("special")
        return state
