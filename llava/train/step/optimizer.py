"""Give LoRA+'s matrices and the projector learning rates of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import PreTrainedModel, Trainer

if TYPE_CHECKING:  # arguments imports this package
    from llava.train.arguments import TrainingArguments


def make_loraplus(args: TrainingArguments, model: PreTrainedModel) -> torch.optim.Optimizer:
    """Return `--optim` with `--loraplus_lr_ratio` times the learning rate for the adapter's B matrices.

    Source: LoRA+ (arXiv:2402.12354), by PEFT.
    """
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    ratio, decay = args.loraplus_lr_ratio, args.weight_decay
    made: torch.optim.Optimizer = create_loraplus_optimizer(
        model, kind, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, **settings
    )
    return made


def set_projector_rate(
    optimizer: torch.optim.Optimizer, model: PreTrainedModel, args: TrainingArguments
) -> None:
    """Split the optimizer's groups so that the projector learns at `--mm_projector_lr`, if it is given.

    Under LoRA+ it learns at `--learning_rate` otherwise: PEFT takes its biases for B matrices.
    """
    rate = args.mm_projector_lr
    if rate is None and args.loraplus_lr_ratio is not None:
        rate = args.learning_rate
    if rate is None:
        return
    projector = {id(parameter) for name, parameter in model.named_parameters() if "mm_projector" in name}
    rest, own = [], []
    for group in optimizer.param_groups:
        inside = [parameter for parameter in group["params"] if id(parameter) in projector]
        outside = [parameter for parameter in group["params"] if id(parameter) not in projector]
        rest.append({**group, "params": outside})
        own.append({**group, "params": inside, "lr": rate})
    optimizer.param_groups = [*rest, *own]
