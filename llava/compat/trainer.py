"""Subclasses of the trainer that were written for transformers 4.37, as forks of the original have them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Methods to which newer versions pass more arguments: after so many, all are new. Nothing here needs them.
OLD_ARGUMENTS = {
    "_get_train_sampler": 0,
    "create_optimizer": 0,
    "log": 1,
    "training_step": 2,
    "compute_loss": 3,
}


class TakesOldOverrides:
    """Lets a subclass override the methods of `OLD_ARGUMENTS` with their older, shorter parameters."""

    def __init_subclass__(cls, **settings: object) -> None:
        super().__init_subclass__(**settings)
        for name, count in OLD_ARGUMENTS.items():
            own = vars(cls).get(name)
            if inspect.isfunction(own) and not _takes_more(own, count):
                setattr(cls, name, _drop_new_arguments(own, count))


def _takes_more(function: Callable[..., object], count: int) -> bool:
    """Return whether a method takes more positional arguments than `self` and `count` others."""
    kinds = [each.kind for each in inspect.signature(function).parameters.values()]
    named = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return named > count + 1 or inspect.Parameter.VAR_POSITIONAL in kinds


def _drop_new_arguments(function: Callable[..., T], count: int) -> Callable[..., T]:
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def called(self: object, *given: object, **named: object) -> T:
        kept = {name: value for name, value in named.items() if name in known}
        return function(self, *given[:count], **kept)

    return called
