"""Conversation templates: from turns to the exact text a model is trained on, and the answers' spans in it.

This module knows nothing of token ids. The templates are fixed: weights depend on every character.

Source: LLaVA v1.2.2 llava/conversation.py (formats and texts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from llava.compat.chat import ImagesInMessages
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError
from llava.schema import JsonObject, Turn

if TYPE_CHECKING:
    from llava.compat.chat import Message, Shown

Span = tuple[int, int]


class SeparatorStyle(Enum):
    """How a template joins turns."""

    SINGLE = auto()
    TWO = auto()
    MPT = auto()
    PLAIN = auto()
    LLAMA_2 = auto()


@dataclass
class Conversation(ImagesInMessages):
    """A template, or a conversation that follows one.

    A message is [role, text]; text is None for an answer still to come, or a tuple (text, PIL image,
    process mode). Templates themselves hold tuples: `copy()` one before appending to it.
    """

    system: str
    roles: Sequence[str]
    messages: Sequence[Sequence[Any]] = ()
    offset: int = 0
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    sep: str = "###"
    sep2: str | None = None
    version: str = "Unknown"
    # Compatibility: kept for code that imports the original's name.
    skip_next: bool = False

    def get_prompt(self) -> str:
        """Return the whole prompt, ready to be tokenized.

        Raises:
            TypeError: The template has no separator after an answer (`plain`); the original's type, too.
            AssertionError: A LLAMA_2 conversation opens with nothing or with the assistant; likewise.
        """
        messages = _with_image_first(self)
        if self.sep_style is SeparatorStyle.LLAMA_2:
            text = "".join(head + body for head, body in _llama_2_parts(self, messages))
            # As in the original this strips characters, not the word: harmless, as "[" follows.
            return text.lstrip(self.sep)
        return "".join(head + body for head, body in _parts(self, messages))

    def append_message(self, role: str, message: Message) -> None:
        """Add a turn; the text None means an answer that is still to come."""
        if not isinstance(self.messages, list):
            raise TypeError("this is a template shared by everyone: copy() it and append to the copy")
        self.messages.append([role, message])

    def copy(self) -> Conversation:
        """Return an independent copy that can be appended to."""
        messages = [[role, message] for role, message in self.messages]
        return Conversation(
            self.system, self.roles, messages, self.offset, self.sep_style, self.sep, self.sep2, self.version
        )

    def dict(self) -> JsonObject:
        """Return the conversation for a log: its texts, without images."""
        return {
            "system": self.system,
            "roles": self.roles,
            "messages": [
                [role, message if message is None else _text(message)] for role, message in self.messages
            ],
            "offset": self.offset,
            "sep": self.sep,
            "sep2": self.sep2,
        }


def render(template: Conversation, turns: Sequence[Turn]) -> tuple[str, list[Span]]:
    """Return the training text of `turns`, and the character span of each answer that is not empty.

    A span covers the answer and its end token, which is what the model learns to write.
    For `plain` and the SINGLE style the text is that of training, which differs from what `get_prompt` gives
    a chat. Turns must alternate, the human's first, in all styles but SINGLE.

    Raises:
        DataError: The template cannot hold such turns.
    """
    if template.sep_style is SeparatorStyle.PLAIN:
        parts, ending = _plain_training_parts(template, turns), ""
    elif template.sep_style is SeparatorStyle.SINGLE:
        parts, ending = _single_training_parts(template, turns), " "
    else:
        messages = _messages(template, turns)
        if template.sep_style is SeparatorStyle.LLAMA_2:
            parts = _llama_2_parts(template, messages)
            parts[0] = (parts[0][0].lstrip(template.sep), parts[0][1])
        else:
            parts = _parts(template, messages)
        ending = ""

    # A caption of nothing still ends its line in `plain`; no other style supervises an empty answer.
    counts_empty = template.sep_style is SeparatorStyle.PLAIN
    silent = [turn.speaker == "human" or not (turn.text or counts_empty) for turn in turns]
    silent = [True] * (len(parts) - len(turns)) + silent  # the opening is no turn
    text = ""
    spans: list[Span] = []
    for (head, body), is_silent in zip(parts, silent, strict=True):
        text += head
        if not is_silent:
            spans.append((len(text), len(text) + len(body)))
        text += body
    return text + ending, spans


def require_renderable(template: Conversation, turns: Sequence[Turn]) -> None:
    """Raise the `DataError` that `render` would raise, without rendering."""
    if template.sep_style is SeparatorStyle.PLAIN:
        _require_caption(turns)
    elif template.sep_style is not SeparatorStyle.SINGLE:
        _messages(template, turns)


def _messages(template: Conversation, turns: Sequence[Turn]) -> list[tuple[str, str]]:
    wanted = ("human", "gpt")
    for index, turn in enumerate(turns):
        if turn.speaker != wanted[index % 2]:
            raise DataError(
                f"turn {index} is from {turn.speaker}, wanted {wanted[index % 2]}: turns must alternate",
                code="turns-do-not-alternate",
            )
    if template.sep_style is SeparatorStyle.LLAMA_2 and not (turns and turns[0].text):
        raise DataError(
            f"turn 0 is empty, but template {template.version} starts with the human's text",
            code="empty-first-turn",
        )
    return [(template.roles[index % 2], turn.text) for index, turn in enumerate(turns)]


# A part is (head, body): the speaker's role, and the text with its end mark.
Part = tuple[str, str]


def _parts(template: Conversation, messages: Sequence[tuple[str, Message]]) -> list[Part]:
    """Return the opening and one part per message, in the styles SINGLE, TWO, MPT and PLAIN."""
    style, sep = template.sep_style, template.sep
    after_answer = template.sep2 if style in (SeparatorStyle.TWO, SeparatorStyle.PLAIN) else sep
    colon, space = (":", " ") if style in (SeparatorStyle.SINGLE, SeparatorStyle.TWO) else ("", "")
    parts = [(template.system, "" if style is SeparatorStyle.PLAIN else sep)]
    for index, (role, message) in enumerate(messages):
        head = "" if style is SeparatorStyle.PLAIN else role + colon
        if not message:
            parts.append((head, ""))
            continue
        end = after_answer if index % 2 else sep
        if end is None:
            raise TypeError(f"template {template.version} has no separator after an answer (sep2 is None)")
        parts.append((head, space + _text(message) + end))
    return parts


def _llama_2_parts(template: Conversation, messages: Sequence[tuple[str, Message]]) -> list[Part]:
    """Return one part per message; the first contains the system text."""
    parts = []
    for index, (role, message) in enumerate(messages):
        if index == 0 and not message:
            raise AssertionError("the first message of a LLAMA_2 conversation is empty")
        if index == 0 and role != template.roles[0]:
            raise AssertionError(f"a LLAMA_2 conversation opens with {template.roles[0]}, not {role}")
        if not message:
            parts.append(("", ""))
        elif index % 2:
            parts.append(("", f" {_text(message)} {template.sep2}"))
        else:
            system = f"<<SYS>>\n{template.system}\n<</SYS>>\n\n" if index == 0 and template.system else ""
            parts.append((f"{template.sep}[INST] {system}{_text(message)} [/INST]", ""))
    return parts


def _single_training_parts(template: Conversation, turns: Sequence[Turn]) -> list[Part]:
    """Return lines of `### Role: text`. The mark of the next turn is what ends an answer."""
    roles = {"human": template.roles[0], "gpt": template.roles[1]}
    mark = "###"
    turn_parts = [(f" {roles[turn.speaker]}:", f" {turn.text}\n{mark}") for turn in turns]
    return [(f"{template.system}\n\n", mark), *turn_parts]


def _plain_training_parts(template: Conversation, turns: Sequence[Turn]) -> list[Part]:
    """Return the image token and its caption; the human's text is not used."""
    _require_caption(turns)
    return [(DEFAULT_IMAGE_TOKEN, ""), ("", turns[1].text + template.sep)]


def _require_caption(turns: Sequence[Turn]) -> None:
    if [turn.speaker for turn in turns] != ["human", "gpt"] or DEFAULT_IMAGE_TOKEN not in turns[0].text:
        raise DataError(
            f"template plain takes one human turn with {DEFAULT_IMAGE_TOKEN} and one answer, "
            f"found {len(turns)} turns ({', '.join(turn.speaker for turn in turns)})",
            code="wrong-turns",
        )


def _with_image_first(conversation: Conversation) -> list[tuple[str, Message]]:
    """Return the messages, with the image token where the template puts it if the first has an image."""
    messages: list[tuple[str, Message]] = [(role, message) for role, message in conversation.messages]
    if not messages:
        return messages
    role, message = messages[0]
    if not isinstance(message, tuple):
        return messages
    text = message[0].replace(DEFAULT_IMAGE_TOKEN, "").strip()
    if "mmtag" in conversation.version:
        human, assistant = conversation.roles
        shown = [(human, f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>"), (assistant, "Received.")]
        return [*shown, (role, text), *messages[1:]]
    return [(role, f"{DEFAULT_IMAGE_TOKEN}\n{text}"), *messages[1:]]


def _text(message: str | Shown) -> str:
    return message[0] if isinstance(message, tuple) else message


_ASSISTANT_OF_A_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
_ASSISTANT_OF_A_USER = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
_ASSISTANT_THAT_SEES = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant is able "
    "to understand the visual content that the user provides, and assist the user with a variety "
    "of tasks using natural language.The visual content will be provided with the following "
    "format: <Image>visual content</Image>."
)
_LLAMA_2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased "
    "and positive in nature.\n"
    "\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of "
    "answering something not correct. If you don't know the answer to a question, please don't "
    "share false information."
)
_LLAVA_LLAMA_2_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
_MPT_SYSTEM = (
    "<|im_start|>system\n"
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and "
    "honest answers."
)
_CHATML_SYSTEM = "<|im_start|>system\nAnswer the questions."
_EXAMPLE_QUESTION = "What are the key differences between renewable and non-renewable energy sources?"
_EXAMPLE_ANSWER = (
    "Renewable energy sources are those that can be replenished naturally in a relatively short "
    "amount of time, such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy "
    "sources, on the other hand, are finite and will eventually be depleted, such as coal, oil, "
    "and natural gas. Here are some key differences between renewable and non-renewable energy "
    "sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable "
    "energy sources are finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact than "
    "non-renewable sources, which can lead to air and water pollution, greenhouse gas emissions, "
    "and other negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they "
    "typically have lower operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more "
    "remote locations than non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to "
    "different situations and needs, while non-renewable sources are more rigid and inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while "
    "non-renewable sources are not, and their depletion can lead to economic and social "
    "instability.\n"
)

conv_vicuna_v0 = Conversation(
    system=_ASSISTANT_OF_A_HUMAN,
    roles=("Human", "Assistant"),
    messages=(("Human", _EXAMPLE_QUESTION), ("Assistant", _EXAMPLE_ANSWER)),
    offset=2,
)
conv_vicuna_v1 = Conversation(
    system=_ASSISTANT_OF_A_USER,
    roles=("USER", "ASSISTANT"),
    sep_style=SeparatorStyle.TWO,
    sep=" ",
    sep2="</s>",
    version="v1",
)
conv_llama_2 = Conversation(
    system=_LLAMA_2_SYSTEM,
    roles=("USER", "ASSISTANT"),
    sep_style=SeparatorStyle.LLAMA_2,
    sep="<s>",
    sep2="</s>",
    version="llama_v2",
)
conv_mpt = Conversation(
    system=_MPT_SYSTEM,
    roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
    sep_style=SeparatorStyle.MPT,
    sep="<|im_end|>",
    version="mpt",
)
conv_llava_plain = Conversation(system="", roles=("", ""), sep_style=SeparatorStyle.PLAIN, sep="\n")
conv_llava_v0 = replace(conv_vicuna_v0, messages=(), offset=0)
conv_llava_v0_mmtag = replace(conv_llava_v0, system=_ASSISTANT_THAT_SEES, version="v0_mmtag")
conv_llava_v1 = replace(conv_vicuna_v1, system=_ASSISTANT_OF_A_HUMAN)
conv_llava_v1_mmtag = replace(conv_vicuna_v1, system=_ASSISTANT_THAT_SEES, version="v1_mmtag")
conv_llava_llama_2 = replace(conv_llama_2, system=_LLAVA_LLAMA_2_SYSTEM)
conv_mistral_instruct = replace(conv_llama_2, system="", sep="")
conv_chatml_direct = replace(conv_mpt, system=_CHATML_SYSTEM)

default_conversation = conv_vicuna_v1
# Open to additions: a program may register a template of its own under a new name.
conv_templates: dict[str, Conversation] = {
    "default": conv_vicuna_v0,
    "v0": conv_vicuna_v0,
    "v1": conv_vicuna_v1,
    "vicuna_v1": conv_vicuna_v1,
    "llama_2": conv_llama_2,
    "mistral_instruct": conv_mistral_instruct,
    "chatml_direct": conv_chatml_direct,
    "mistral_direct": conv_chatml_direct,
    "plain": conv_llava_plain,
    "v0_plain": conv_llava_plain,
    "llava_v0": conv_llava_v0,
    "v0_mmtag": conv_llava_v0_mmtag,
    "llava_v1": conv_llava_v1,
    "v1_mmtag": conv_llava_v1_mmtag,
    "llava_llama_2": conv_llava_llama_2,
    "mpt": conv_mpt,
}
