#!/usr/bin/env bash
# All checks: ruff format and lint, mypy, shellcheck, pytest. Makes and uses the same environment as quickstart.sh.
#
#   bash scripts/test.sh [PYTEST ARGUMENTS...]      e.g. bash scripts/test.sh tests/golden/test_tokenizer.py -x
#
# Settings: LLAVA_TEST_DATA  folder with golden/ and realdata/; tests of what may not be shipped are skipped without it
#           TEST_WORKERS     pytest processes (default: the number of cores), one torch thread each
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/_environment.sh
source scripts/_environment.sh
use_environment train,quant,dev

ruff format --check .
ruff check .
mypy
git ls-files -z --cached --others --exclude-standard -- '*.sh' .ci/run | xargs -0 shellcheck -x
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest --numprocesses "${TEST_WORKERS:-$(nproc)}" --dist worksteal --quiet "$@"
