"""Fill a candidate in with what a round's requests were made of."""

from __future__ import annotations

from pathlib import Path

from llava.data_engine.loop.pool import read_pool
from llava.data_engine.prompting.accept import Fill
from llava.data_engine.requests.rendering import PromptTemplate
from llava.data_engine.requests.writing import make_messages
from llava.errors import DataError
from llava.schema import JsonObject


def make_fill(round_folder: Path, template: PromptTemplate) -> Fill:
    """Return a function that makes the messages of a round's request with another template.

    Raises:
        DataError: The pool is missing or damaged. The function raises one for a request that was not made
            from it.
    """
    types = read_pool(round_folder)["types"]
    cases = {str(case["question_id"]): case for row in types.values() for case in row["cases"]}

    def fill(row: JsonObject) -> list[JsonObject]:
        try:
            return make_messages(template, row, [cases[str(key)] for key in row["cases"]])
        except KeyError as error:
            raise DataError(
                f"{round_folder}: request {row['id']} lacks {error}, or the pool does; run `llava engine"
                " requests` again",
                code="changed-input",
            ) from error

    return fill
