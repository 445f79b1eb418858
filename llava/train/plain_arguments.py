"""Let the trainer take arguments that are not this package's: transformers', or another program's."""

from __future__ import annotations

from dataclasses import MISSING, fields

import transformers

from llava.train.arguments import TrainingArguments


def complete_arguments(args: transformers.TrainingArguments) -> None:
    """Give `args` what it lacks of this package's arguments, with the values that train as the original does.

    What it has stays, but for `remove_unused_columns`, with which transformers would drop every image. `args`
    is changed in place, because callers keep and change the object they passed.
    """
    if isinstance(args, TrainingArguments):
        return
    defaults = {
        each.name: each.default if each.default_factory is MISSING else each.default_factory()
        for each in fields(TrainingArguments)
    }
    missing = {name: value for name, value in defaults.items() if not hasattr(args, name)}
    vars(args).update({**missing, "recipe": "exact", "remove_unused_columns": False})
    computed = {name: each for name, each in vars(TrainingArguments).items() if isinstance(each, property)}
    vars(args).update(
        {name: each.fget(args) for name, each in computed.items() if each.fget and not hasattr(args, name)}
    )
