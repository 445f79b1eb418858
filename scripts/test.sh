#!/usr/bin/env bash
# Run all checks: ruff, mypy, shellcheck, pytest. Makes and uses the same environment as quickstart.sh.
#
#   bash scripts/test.sh                         everything but the tests marked exhaustive
#   bash scripts/test.sh all                     everything, and scripts under test start Python anew
#   bash scripts/test.sh quick                   ruff and the unit tests, for an edit-run loop
#   bash scripts/test.sh [PYTEST ARGUMENTS...]   pytest alone: bash scripts/test.sh tests/golden/test_tokenizer.py -x
#
# Settings: LLAVA_TEST_DATA  folder with golden/ and realdata/; without it the golden outputs in tests/data are used,
#                            and tests of data that may not be shipped are skipped and counted
#           TEST_WORKERS     pytest processes, one torch thread each (default: as many as cores)
set -euo pipefail

# shellcheck source=scripts/_environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
use_environment train,quant,dev

check_style() {
    ruff format --check .
    ruff check .
}
check_code() {
    check_style
    mypy
    git ls-files -z --cached --others --exclude-standard -- '*.sh' .ci/run | xargs -0 shellcheck -x
}
case ${1:-} in
    "") check_code ;;
    all)
        check_code
        export TEST_COLD=1
        set -- -m "" "${@:2}"
        ;;
    quick)
        check_style
        set -- tests/unit "${@:2}"
        ;;
esac
# One more than cores slows the tests with several ranks to a third. With OMP_NUM_THREADS=1 nproc prints 1.
workers=${TEST_WORKERS:-$(env -u OMP_NUM_THREADS nproc)}
export OMP_NUM_THREADS=1
exec "$PYTHON" -m pytest --numprocesses "$workers" --dist worksteal --quiet --durations 15 "$@"
