# shellcheck shell=bash
# Prepares the Python environment of quickstart.sh and test.sh. Source this file; do not run it.
#
#   source scripts/_environment.sh; use_environment EXTRAS
#
# Uses the active virtualenv or conda environment, else makes .venv in the repository. Installs the package with
# EXTRAS ("notebook", "train,quant,dev", ...) and the tested versions of scripts/constraints.txt, once: a stamp in the
# environment records what is installed, so that a second call returns at once. Sets PYTHON and PATH.
#
# Settings: PYTHON  the interpreter that makes .venv (default: python3; at least 3.11 is needed)

# shellcheck source=scripts/_help.sh
source "$(dirname "${BASH_SOURCE[0]}")/_help.sh"

use_environment() {
    local extras=$1 root environment interpreter stamp
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    environment=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
    interpreter=${PYTHON:-python3}
    [[ -n $environment ]] && interpreter=$environment/bin/python
    command -v "$interpreter" >/dev/null || die "$interpreter: not found; install Python 3.11 or newer, or set PYTHON to one"
    "$interpreter" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$interpreter is $("$interpreter" -V 2>&1); LLaVA needs Python 3.11 or newer: install one, or set PYTHON to it"

    if [[ -z $environment ]]; then
        environment=$root/.venv
        if [[ ! -x $environment/bin/python ]]; then
            echo "making $environment"
            "$interpreter" -m venv "$environment" ||
                die "$interpreter cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv"
        fi
    fi
    PYTHON=$environment/bin/python
    export PYTHON PATH="$environment/bin:$PATH"

    stamp=$environment/.llava-$("$PYTHON" - "$root" "$extras" <<'END'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
text = "".join(sys.argv[1:]) + (root / "pyproject.toml").read_text() + (root / "scripts/constraints.txt").read_text()
print(hashlib.sha256(text.encode()).hexdigest()[:16])
END
    )
    if [[ -e $stamp ]]; then
        echo "environment $environment: [$extras] is installed already, used as it is"
        return
    fi
    echo "environment $environment: installing [$extras] with the tested versions (a few minutes the first time)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-compile \
        --constraint "$root/scripts/constraints.txt" --editable "${root}[${extras}]" ||
        die "the installation failed (see above); nothing was marked as installed: fix the cause and run this again"
    # pip would compile on one core. Some packages hold templates that no Python compiles.
    "$PYTHON" -m compileall -qq --workers 0 "$environment/lib" || true
    touch "$stamp"
}
