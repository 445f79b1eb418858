"""Trains the demo's base language model, and the projector that stage 1 starts from.

An even mix of question types stays at chance for a long time, so types come one or two at a time:
looking things up in text, then short answers about images, then letters, then further types, and at last
short answers alone to the types whose letters are left to the engine's data.
While a letter is asked for, a lower layer is taught the answer's word; the layers above find its letter.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import sentencepiece
import torch
from tinyworld.layouts import caption, letter_prompt, scenes
from tinyworld.questions import LETTERS, Asker, Question
from tinyworld.scene import COLOURS, ITEMS, PLACES, POSITIONS, SHAPES, WORDS, Scene
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, rms_norm
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from llava.prompts.wording import SHORT_SUFFIX, with_suffix

from .start import prime
from .tower import FACTS, LAYER, annotations, pixels

IGNORED = -100
WIDTH, LAYERS, HEADS, INNER = 192, 5, 4, 512
WORD_LAYER = 3
"""After this layer the answer's word is asked for; the layers above look up its letter."""
BATCH = 96
TEXT_BATCH = 64
_GOAL_OVER = 8
_READ_SCALE = 3.0
_PROJECTOR = "model.mm_projector."
_VALUES = tuple(
    dict.fromkeys((*SHAPES, *COLOURS, *ITEMS, *PLACES, *POSITIONS, *WORDS, *"1234", "above", "below"))
)


@dataclass(frozen=True, slots=True)
class Stage:
    """Tasks and how often each has the batch; over when the first one's share of right ids reaches the goal.

    "23 short" is short answers to types 2 and 3. `read` names facts about each cell that linear heads, thrown
    away afterwards, read off the projector's output meanwhile: what was never asked for has faded there.
    """

    tasks: dict[str, int]
    goal: float
    most_steps: int
    read: tuple[str, ...] = ()


CURRICULUM = (
    Stage({"23 short": 1}, goal=0.93, most_steps=400),
    Stage({"lookup": 3, "23 short": 1}, goal=0.93, most_steps=400),
    Stage({"23 letter": 4, "23 short": 1, "lookup": 1}, goal=0.98, most_steps=300),
    Stage({"18 letter": 2, "18 short": 2, "23 letter": 2}, goal=0.93, most_steps=300),
    Stage({"1238 letter": 5, "1238 short": 1, "1238 sentence": 1, "caption": 1}, goal=0.985, most_steps=250),
    Stage({"7 short": 4, "1238 short": 1, "1238 letter": 1}, goal=0.95, most_steps=260, read=("item",)),
    Stage(
        {"9 short": 6, "7 short": 1, "1238 short": 1, "1238 letter": 1},
        goal=0.95,
        most_steps=220,
        read=("item", "word"),
    ),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Ids before the image, ids after it, labels; the answer's word and where it is asked for, or -1."""

    before: tuple[int, ...]
    after: list[int]
    labels: list[int]
    word: int = 0
    word_at: int = -1


class Pupil(nn.Module):
    """The language model with the projector that it learns to see through."""

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.language = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=pieces,
                hidden_size=WIDTH,
                intermediate_size=INNER,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                max_position_embeddings=2048,
                rms_norm_eps=1e-5,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            )
        )
        self.projector = nn.Sequential(nn.Linear(128, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        prime(self.language, self.projector, match_from=WORD_LAYER)

    def forward(self, rows: list[Row], features: Tensor) -> tuple[Tensor, float]:
        """The loss, and the share of supervised ids that are right. `features`: (B, cells, 128)."""
        length = max(len(row.after) for row in rows)
        ids = torch.tensor([row.after + [0] * (length - len(row.after)) for row in rows])
        labels = torch.tensor([row.labels + [IGNORED] * (length - len(row.labels)) for row in rows])
        embed = self.language.model.embed_tokens
        before = embed(torch.tensor(rows[0].before)).expand(len(rows), -1, -1)
        inputs = torch.cat([before, self.projector(features), embed(ids)], dim=1)
        out = self.language.model(inputs_embeds=inputs, use_cache=False, output_hidden_states=True)
        start = inputs.shape[1] - length - 1  # what is at a position answers for the next
        asked = labels != IGNORED
        logits = self.language.lm_head(out.last_hidden_state[:, start:-1][asked]).float()
        loss = cross_entropy(logits, labels[asked])
        if rows[0].word_at >= 0:
            places = torch.tensor([start + row.word_at for row in rows])
            lower = self.language.model.norm(out.hidden_states[WORD_LAYER][torch.arange(len(rows)), places])
            loss = loss + cross_entropy(
                self.language.lm_head(lower).float(), torch.tensor([row.word for row in rows])
            )
        return loss, (logits.argmax(-1) == labels[asked]).float().mean().item()


class Lessons:
    """Draws the rows of a task."""

    def __init__(self, folder: Path, tower: CLIPVisionModel, *, seed: int, images: int) -> None:
        self.reader = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self.rng = random.Random(f"lessons {seed}")
        self.asker = Asker(seed)
        self.scenes: list[Scene] = list(islice(scenes("recipe", seed), images))
        with torch.no_grad():
            self.features = torch.cat(
                [
                    tower(pixels(self.scenes[start : start + 500]), output_hidden_states=True).hidden_states[
                        LAYER
                    ][:, 1:]
                    for start in range(0, images, 500)
                ]
            )

    def draw(self, task: str) -> tuple[list[Row], list[Scene], Tensor]:
        """A batch of rows with the scenes and the image features that belong to them."""
        if task == "lookup":
            return [self._lookup() for _ in range(TEXT_BATCH)], [], torch.zeros(TEXT_BATCH, 0, 128)
        chosen = [self.rng.randrange(len(self.scenes)) for _ in range(BATCH)]
        shown = [self.scenes[index] for index in chosen]
        return [self._row(scene, task) for scene in shown], shown, self.features[chosen]

    def _row(self, scene: Scene, task: str) -> Row:
        if task == "caption":
            ids = self.reader.encode(caption(self.asker, scene) + "\n")
            return Row((1,), ids, ids)
        types, mode = task.split()
        question = self.asker.ask(scene, int(self.rng.choice(types)))
        text, answer = _exchange(question, mode)
        prompt = self.reader.encode(f"\n{text} ASSISTANT:")
        reply = [*self.reader.encode(answer), 2]
        word_at = -1 if mode == "sentence" else len(prompt)
        word = self.reader.encode(question.short)[0]
        before = (1, *self.reader.encode("USER: "))
        return Row(before, prompt + reply, [IGNORED] * len(prompt) + reply, word, word_at)

    def _lookup(self, queries: int = 16) -> Row:
        """Four options, then words out of them, each to be followed by its letter."""
        options = self.rng.sample(_VALUES, 4)
        words = [self.reader.encode(word)[0] for word in options]
        letters = [self.reader.encode(letter)[0] for letter in LETTERS]
        block = "".join(f"\n{letter}. {word}" for letter, word in zip(LETTERS, options, strict=True))
        ids = self.reader.encode(block + "\n")[1:]
        labels = [IGNORED] * len(ids)
        for _ in range(queries):
            chosen = self.rng.randrange(4)
            ids += [words[chosen], letters[chosen]]
            labels += [IGNORED, letters[chosen]]
        return Row((1,), ids, labels)


def _exchange(question: Question, mode: str) -> tuple[str, str]:
    if mode == "letter":
        return letter_prompt(question), question.letter
    if mode == "short":
        return with_suffix(question.text, SHORT_SUFFIX), question.short
    return question.text, question.sentence


class Readers(nn.ModuleDict):
    """A linear head per fact, which reads it off each cell's projected features."""

    def __init__(self, facts: tuple[str, ...]) -> None:
        super().__init__({name: nn.Linear(WIDTH, 1 + len(FACTS[name])) for name in facts})

    def loss(self, projected: Tensor, shown: list[Scene]) -> Tensor:
        """Summed over the facts. `projected`: (B, cells, width), of the B scenes."""
        seen = rms_norm(projected, (WIDTH,)) * _READ_SCALE
        truth = [annotations(scene) for scene in shown]
        return sum(
            (
                cross_entropy(head(seen).flatten(0, 1), torch.tensor([row[name] for row in truth]).flatten())
                for name, head in self.items()
            ),
            start=torch.zeros(()),
        )


def teach(pupil: Pupil, lessons: Lessons, stage: Stage, *, rate: float) -> None:
    """Train until the stage's goal is met."""
    readers = Readers(stage.read)
    trained = [*pupil.parameters(), *readers.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    started = time.monotonic()
    right: dict[str, list[float]] = {task: [] for task in stage.tasks}
    goal_task = next(iter(stage.tasks))
    for step in range(1, stage.most_steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, step / 30)
        task = lessons.rng.choices(list(stage.tasks), list(stage.tasks.values()))[0]
        rows, shown, features = lessons.draw(task)
        loss, share = pupil(rows, features)
        if shown and stage.read:
            loss = loss + readers.loss(pupil.projector(features), shown)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        right[task].append(share)
        lately = {name: sum(shares[-_GOAL_OVER:]) / _GOAL_OVER for name, shares in right.items()}
        is_over = lately[goal_task] >= stage.goal
        if step % 25 == 0 or is_over:
            shares = {name: round(value, 2) for name, value in lately.items()}
            print(f"{time.monotonic() - started:.0f} s, step {step}: {shares}", flush=True)
        if is_over:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tower", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="holds tokenizer.model already")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--images", type=int, default=16000)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    tower = CLIPVisionModel.from_pretrained(args.tower, dtype=torch.float32)
    lessons = Lessons(args.out, tower, seed=args.seed, images=args.images)
    pupil = Pupil(lessons.reader.vocab_size())
    for number, stage in enumerate(CURRICULUM):
        print(f"stage {number}: {stage.tasks}", flush=True)
        teach(pupil, lessons, stage, rate=1e-3)
    projector = {f"{_PROJECTOR}{name}": value for name, value in pupil.projector.state_dict().items()}
    torch.save(projector, args.out / "mm_projector.bin")
    pupil.language.half().save_pretrained(args.out)


if __name__ == "__main__":
    main()
