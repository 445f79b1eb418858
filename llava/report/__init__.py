"""Compare runs: benchmark scores in one table, training logs as curves.

llava report BASE/metrics.json TUNED/metrics.json     a table, see comparison.py
llava report results RUN...                           a paper's table and bars, see results.py
llava report compare A B                              the questions that changed, see flips.py
llava report training RUN OTHER_RUN                   curves as a PNG, see training.py
llava report badcases BASE TUNED                      a page of questions that went wrong, see badcases.py
"""

from llava.report.comparison import (
    ComparedRun,
    Row,
    compare,
    read_runs,
    to_json,
    to_markdown,
)
from llava.report.differences import Difference, paired_difference

__all__ = [
    "ComparedRun",
    "Difference",
    "Row",
    "compare",
    "paired_difference",
    "read_runs",
    "to_json",
    "to_markdown",
]
