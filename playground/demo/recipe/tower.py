"""Trains the demo's vision tower: a small CLIPVisionModel taught to say what each of the nine cells holds.

CLIP learns from captions; this one from the generator's annotations, through heads that are thrown away.
Only the layer that LLaVA reads (the last but one) is trained on, so the last layer keeps its first values.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

import torch
from tinyworld.drawing import draw
from tinyworld.layouts import scenes
from tinyworld.scene import COLOURS, ITEMS, PLACES, SHAPES, SIDE, WORDS, Scene
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from llava.model.multimodal_encoder.builder import write_vision_model

IMAGE_SIZE = 48
CELLS = SIDE * SIDE
LAYER = -2
FACTS = {"shape": SHAPES, "colour": COLOURS, "item": ITEMS, "word": WORDS, "place": PLACES}
"""What there is to know of a cell, and the values it can have besides none."""


def processor() -> CLIPImageProcessorPil:
    """CLIP's image processor at the tower's size."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)


def pixels(scenes: list[Scene]) -> Tensor:
    """What the tower sees of the scenes, (N, 3, 48, 48)."""
    prepare = processor()
    return torch.cat([prepare(draw(scene), return_tensors="pt")["pixel_values"] for scene in scenes])


def annotations(scene: Scene) -> dict[str, list[int]]:
    """Per head, the class of each cell; 0 where the cell has none."""
    rows = {name: [0] * CELLS for name in FACTS}
    rows["place"] = [1 + PLACES.index(scene.place)] * CELLS
    rows["word"][scene.sign_cell] = 1 + WORDS.index(scene.word)
    for thing in scene.things:
        rows["shape"][thing.cell] = 1 + SHAPES.index(thing.shape)
        rows["colour"][thing.cell] = 1 + COLOURS.index(thing.colour)
        rows["item"][thing.cell] = 1 + ITEMS.index(thing.item)
    return rows


class CellReader(nn.Module):
    """The tower with one linear head per kind of fact."""

    def __init__(self, tower: CLIPVisionModel) -> None:
        super().__init__()
        self.tower = tower
        width = tower.config.hidden_size
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, 1 + len(values)) for name, values in FACTS.items()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Per head, logits (N, 9, classes)."""
        hidden = self.tower(images, output_hidden_states=True).hidden_states[LAYER][:, 1:]
        return {name: head(hidden) for name, head in self.heads.items()}


def build() -> CLIPVisionModel:
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=IMAGE_SIZE // SIDE,
            projection_dim=128,
        )
    )


def train(
    scenes: list[Scene], *, seed: int, steps: int, batch: int
) -> tuple[CLIPVisionModel, dict[str, float]]:
    """A trained tower, and each head's accuracy on the last 500 scenes, which it was not trained on."""
    torch.manual_seed(seed)
    images = pixels(scenes)
    rows = [annotations(scene) for scene in scenes]
    truth = {name: torch.tensor([row[name] for row in rows]) for name in FACTS}
    reader = CellReader(build())
    optimiser = torch.optim.AdamW(reader.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=steps, pct_start=0.1)
    last = len(scenes) - 500
    for step in range(steps):
        chosen = torch.randint(last, (batch,))
        logits = reader(images[chosen])
        losses = [
            nn.functional.cross_entropy(logits[name].flatten(0, 1), truth[name][chosen].flatten())
            for name in FACTS
        ]
        loss = torch.stack(losses).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            print(step, round(loss.item(), 3), flush=True)
    with torch.no_grad():
        logits = reader.eval()(images[last:])
    scores = {}
    for name in FACTS:
        shown = truth[name][last:] > 0
        scores[name] = (logits[name].argmax(-1) == truth[name][last:])[shown].float().mean().item()
    return reader.tower, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=8000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    started = time.monotonic()
    drawn = list(islice(scenes("recipe", args.seed), args.scenes))
    tower, scores = train(drawn, seed=args.seed, steps=args.steps, batch=args.batch)
    write_vision_model(tower.half(), args.out)
    processor().save_pretrained(args.out)
    print({name: round(score, 4) for name, score in scores.items()}, f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
