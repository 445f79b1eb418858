"""The original's data loader of questions about images, one at a time. Imports torch late."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.image_reading import image_path, read_image
from llava.infer.jobs.prompting import image_line, prompt_of
from llava.schema import JsonObject

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import DataLoader
    from transformers import CLIPImageProcessorPil, PretrainedConfig, PreTrainedTokenizerBase

Size = tuple[int, int]

# Where the original's class finds the flags of the program it belongs to.
PROGRAM = "llava.eval.model_vqa_loader"


class CustomDataset:
    """Questions about images, as (ids (L,), pixels, (width, height)) for `generate`.

    Attributes:
        conv_mode: The conversation template, unless a program sets `args` in `llava.eval.model_vqa_loader`,
            as it must for the original's class: then `args.conv_mode`.
    """

    conv_mode = "llava_v1"

    def __init__(
        self,
        questions: Sequence[JsonObject],
        image_folder: str,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: CLIPImageProcessorPil,
        model_config: PretrainedConfig,
    ) -> None:
        """Create a data set.

        Args:
            questions: Each has `text` and `image`, a path in `image_folder`.
            image_folder: The folder of the images.
            tokenizer: The model's.
            image_processor: The vision tower's.
            model_config: The model's.
        """
        self.questions = questions
        self.image_folder = image_folder
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.model_config = model_config

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Size]:
        from llava.images import process_images
        from llava.prompts.encode import tokenizer_image_token

        question = self.questions[index]
        flags = getattr(sys.modules.get(PROGRAM), "args", self)
        prompt = prompt_of(flags.conv_mode, question["text"], image_line(self.model_config))
        image = read_image(image_path(Path(self.image_folder), question["image"], f"question {index}"))
        pixels = process_images([image], self.image_processor, self.model_config)[0]
        return tokenizer_image_token(prompt, self.tokenizer, return_tensors="pt"), pixels, image.size


def collate_fn(batch: Sequence[tuple[Tensor, Tensor, Size]]) -> tuple[Tensor, Tensor, tuple[Size, ...]]:
    """Return the stacked ids (B, L), the stacked pixels, and the sizes of a batch of `CustomDataset`."""
    import torch

    ids, pixels, sizes = zip(*batch, strict=True)
    return torch.stack(ids), torch.stack(pixels), sizes


def create_data_loader(
    questions: Sequence[JsonObject],
    image_folder: str,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: CLIPImageProcessorPil,
    model_config: PretrainedConfig,
    batch_size: int = 1,
    num_workers: int = 4,
) -> DataLoader[tuple[Tensor, Tensor, Size]]:
    """Return a data loader of `CustomDataset` in order; `batch_size` must be 1."""
    from torch.utils.data import DataLoader

    assert batch_size == 1, "batch_size must be 1"
    dataset: Any = CustomDataset(questions, image_folder, tokenizer, image_processor, model_config)
    return DataLoader(
        dataset, batch_size=batch_size, num_workers=num_workers, shuffle=False, collate_fn=collate_fn
    )
