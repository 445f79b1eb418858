#!/usr/bin/env bash
# Install the lowest versions that pyproject.toml allows, and run the unit tests with them.
#
#   bash scripts/test_lowest.sh                         the unit tests
#   bash scripts/test_lowest.sh [PYTEST ARGUMENTS...]   e.g. bash scripts/test_lowest.sh tests/golden/test_model.py
#
# Makes .venv-lowest (again, if pyproject.toml has changed) with uv, which can resolve to the lowest versions; pip cannot.
#
# Settings: PYTHON  the interpreter of the environment, or a version such as 3.13, which uv finds (default: python3)
set -euo pipefail

# shellcheck source=scripts/_help.sh
source "$(dirname "${BASH_SOURCE[0]}")/_help.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v uv >/dev/null || die "uv is not installed: pip install uv"
environment=.venv-lowest
export VIRTUAL_ENV=$PWD/$environment
if [[ ! $environment/installed -nt pyproject.toml ]]; then
    uv venv --quiet --clear --python "${PYTHON:-python3}" "$environment"
    uv pip install --quiet --resolution lowest-direct --editable ".[train,quant,dev]"
    touch "$environment/installed"
fi
(($# > 0)) || set -- tests/unit
exec env OMP_NUM_THREADS=1 "$environment/bin/python" -m pytest --quiet "$@"
