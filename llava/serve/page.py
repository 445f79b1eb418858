"""The web page: what it shows, and what its buttons do. `llava.serve.web` starts it."""

from __future__ import annotations

import html
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict

import gradio as gr

from llava.errors import DataError, LlavaError, one_line
from llava.files import write_json
from llava.image_reading import SUFFIXES, open_image
from llava.infer.engine.requests import Generation, ImageFile
from llava.schema import JsonObject
from llava.serve.dialogue import Talker, TalkTurn
from llava.serve.votes import VOTES, VoteLog

LONGEST_QUESTION = 8_000
"""Characters of a question. It is far above what a model's context holds, and keeps a hostile one cheap."""
_UNCHANGED = gr.skip()
LOOKS = {
    # Gradio's own themes fetch their fonts from Google.
    "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    # One of the buttons beside a visitor's image sends it to huggingface.co.
    "css": ".message-buttons-right { display: none }",
    # The browser fetches from this server alone, and sends to no other.
    "head": """<meta http-equiv="Content-Security-Policy"
        content="default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'">""",
}
"""What Gradio's `launch` is told about the page."""

Update = tuple[object, ...]
"""New values of the page's parts: a chat of each model, the question, the file to download."""


class Box(TypedDict):
    """The question being written: its text, and the files of its images."""

    text: str
    files: list[str]


@dataclass
class Session:
    """What one visitor has said. Gradio copies it for each visitor.

    Attributes:
        talks: A talk with each model; all have the same questions.
        is_busy: Whether an answer is being written.
        is_stopped: Whether it shall end.
        has_voted: Whether there is a vote on the last answers.
    """

    talks: list[list[TalkTurn]]
    is_busy: bool = False
    is_stopped: bool = False
    has_voted: bool = False


@dataclass
class Page:
    """A page about one or two models.

    Attributes:
        talkers: The models.
        folder: Where files for download are written, which the page serves.
        initial: The settings it opens with.
        longest: The largest length of an answer, in tokens, that can be chosen.
        votes: Where votes are kept; None for a page without votes.
        examples: (image, question) to try.
    """

    talkers: Sequence[Talker]
    folder: Path
    initial: Generation
    longest: int
    votes: VoteLog | None = None
    examples: Sequence[tuple[Path, str]] = ()

    def build(self, concurrency: int) -> gr.Blocks:
        """Return the page, on which `concurrency` visitors get an answer at the same time."""
        title = " and ".join(dict.fromkeys(talker.name for talker in self.talkers))
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
            session = gr.State(lambda: Session([[] for _ in self.talkers]))
            with gr.Row():
                chats = [
                    gr.Chatbot(
                        label=talker.name,
                        elem_id=f"chat-{index}",
                        render_markdown=False,
                        buttons=[],  # copying would copy escapes
                        height=420,
                    )
                    for index, talker in enumerate(self.talkers)
                ]
            box = gr.MultimodalTextbox(
                elem_id="question",
                label="Question",
                placeholder="Ask about an image: add one with the paper clip, drop it here, or paste it",
                file_types=sorted(SUFFIXES),
                sources=["upload"],
                autofocus=True,
            )
            if self.votes is not None:
                with gr.Row():
                    votes = {vote: gr.Button(text, size="sm") for vote, text in VOTES.items()}
            with gr.Row():
                stop = gr.Button("Stop", size="sm")
                regenerate = gr.Button("Regenerate", size="sm")
                clear = gr.Button("New conversation", size="sm")
                download = gr.DownloadButton("Download", size="sm", elem_id="download")
            with gr.Row():
                temperature = gr.Slider(
                    0, 2, self.initial.temperature, step=0.05, label="Temperature", info="0: always the same"
                )
                top_p = gr.Slider(0.05, 1, self.initial.top_p or 1.0, step=0.05, label="Top-p")
                length = gr.Slider(1, self.longest, self.initial.max_new_tokens, step=1, label="Most tokens")
            if self.examples:
                rows = [[{"text": text, "files": [str(path)]}] for path, text in self.examples]
                gr.Examples(rows, [box], label="Examples")
            outputs = [*chats, box, download]
            settings = [temperature, top_p, length]
            answering = {
                "concurrency_limit": concurrency,
                "concurrency_id": "answers",
                "show_progress_on": chats,
            }
            private = {"api_visibility": "private"}
            box.submit(self.ask, [session, box, *settings], outputs, **answering, **private)
            regenerate.click(self.regenerate, [session, *settings], outputs, **answering, **private)
            stop.click(self.stop, [session], queue=False, **private)
            for emptied in (clear.click, *(chat.clear for chat in chats)):
                emptied(self.clear, [session], outputs, queue=False, **private)
            if self.votes is not None:
                for vote, button in votes.items():
                    button.click(partial(self.vote, vote), [session], concurrency_limit=None, **private)
        return page

    def ask(
        self, session: Session, box: Box, temperature: float, top_p: float, length: float
    ) -> Iterator[Update]:
        """Answer a question with every model."""
        try:
            question, images = _read_box(box)
            _require_idle(session)
        except DataError as error:
            _warn(error)
            yield self._update(session)
            return
        for talk in session.talks:
            talk.append(TalkTurn(question, images))
        yield from self._answer(session, _generation(temperature, top_p, length), None)

    def regenerate(
        self, session: Session, temperature: float, top_p: float, length: float
    ) -> Iterator[Update]:
        """Answer the last question again."""
        try:
            _require_idle(session)
            _require_question(session)
        except DataError as error:
            _warn(error)
            yield self._update(session)
            return
        yield from self._answer(session, _generation(temperature, top_p, length))

    def stop(self, session: Session) -> None:
        """End the answer that is being written; what there is of it stays."""
        session.is_stopped = True

    def clear(self, session: Session) -> Update:
        """Begin a new conversation."""
        session.is_stopped = True
        session.talks = [[] for _ in self.talkers]
        return self._update(session, None)

    def vote(self, vote: str, session: Session) -> None:
        """Keep the visitor's vote on the last answers, one each."""
        try:
            _require_idle(session)
            _require_question(session)
            if session.has_voted:
                raise DataError("there is a vote on these answers already", code="voted")
            images = [image.path for turn in session.talks[0] for image in _files(turn)]
            assert self.votes is not None
            self.votes.add(vote, self.describe(session), images)
        except (DataError, OSError) as error:
            _warn(error)
            return
        session.has_voted = True
        gr.Info("Thank you: the vote is kept.")

    def describe(self, session: Session) -> JsonObject:
        """Return a conversation for a file: models, questions, names of images, answers and settings."""
        rows = [
            {
                "question": turns[0].question,
                "images": [image.path.name for image in _files(turns[0])],
                "answers": [turn.answer for turn in turns],
                "generation": [turn.generation and asdict(turn.generation) for turn in turns],
            }
            for turns in zip(*session.talks, strict=True)
        ]
        return {"models": [talker.name for talker in self.talkers], "turns": rows}

    def _answer(
        self, session: Session, generation: Generation, box: Box | None = _UNCHANGED
    ) -> Iterator[Update]:
        """Answer the last question with every model, one after the other: they share the machine."""
        session.is_busy, session.is_stopped, session.has_voted = True, False, False
        talks = session.talks
        for talk in talks:
            talk[-1].answer = ""
        yield self._update(session, box)
        box = _UNCHANGED
        try:
            for talker, talk in zip(self.talkers, talks, strict=True):
                if session.is_stopped:
                    break
                for _ in talker.answer(talk, generation, lambda: session.is_stopped):
                    yield self._update(session)
        except LlavaError as error:
            _warn(error)
            asked, *_ = [talk.pop() for talk in talks]
            box = {"text": asked.question, "files": [str(image.path) for image in _files(asked)]}
        finally:
            session.is_busy = False
        yield *self._update(session, box)[:-1], self._write(session)

    def _update(self, session: Session, box: Box | None = _UNCHANGED) -> Update:
        """Return what the page shows. A box that is not given keeps what the visitor is typing."""
        shown = [_messages(talk, "…" if session.is_busy else "(no answer)") for talk in session.talks]
        return *shown, box, _UNCHANGED

    def _write(self, session: Session) -> str:
        """Write the file to download into a folder of its own; its address cannot be guessed."""
        path = Path(tempfile.mkdtemp(dir=self.folder)) / "conversation.json"
        write_json(path, self.describe(session))
        return str(path)


def _messages(talk: Sequence[TalkTurn], no_answer: str) -> list[JsonObject]:
    """Return a talk as Gradio shows it, with `no_answer` for each answer that has no text."""
    messages: list[JsonObject] = []
    for turn in talk:
        images = [{"path": str(image.path)} for image in _files(turn)]
        said = [*images, _escape(turn.question)]
        messages += [{"role": "user", "content": content} for content in said]
        messages.append({"role": "assistant", "content": _escape(turn.answer) or no_answer})
    return messages


def _escape(text: str) -> str:
    """Return HTML that shows a text as it is: Gradio takes texts for HTML, and drops what could run."""
    return html.escape(text, quote=False)


def _read_box(box: Box) -> tuple[str, tuple[ImageFile, ...]]:
    """Return the question and its images, which Gradio has put into its folder.

    Raises:
        DataError: There is no question, it is too long, or an image is broken.
    """
    question, files = box["text"].strip(), [Path(name) for name in box["files"]]
    if not question:
        raise DataError("write a question first", code="empty-question")
    if len(question) > LONGEST_QUESTION:
        raise DataError(
            f"the question has {len(question):,} characters; at most {LONGEST_QUESTION:,} are read",
            code="question-too-long",
        )
    for path in files:
        with open_image(path, name=path.name) as image:
            image.load()
    return question, tuple(map(ImageFile, files))


def _require_idle(session: Session) -> None:
    if session.is_busy:
        raise DataError("an answer is still being written: wait for it, or stop it", code="busy")


def _require_question(session: Session) -> None:
    if not session.talks[0]:
        raise DataError("there is no answer yet: ask a question first", code="no-question")


def _files(turn: TalkTurn) -> list[ImageFile]:
    return [image for image in turn.images if isinstance(image, ImageFile)]


def _generation(temperature: float, top_p: float, length: float) -> Generation:
    """Return how an answer is generated, with a seed of its own: asked again, it may differ."""
    return Generation(temperature, top_p, max_new_tokens=int(length), seed=random.randrange(2**31))


def _warn(error: Exception) -> None:
    """Show an error on the page. Its text may name what a visitor sent."""
    gr.Warning(_escape(one_line(error)))
