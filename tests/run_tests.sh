#!/usr/bin/env bash
# Run the tests, in an environment that is made where there is none: ./tests/run_tests.sh [options of pytest, files]
# Files of tests are shared out among the cores; -n 0 runs them one after the other.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$ROOT/egs/common.sh"
setup_environment "$ROOT/tests/requirements.txt"
cd "$ROOT/tests"
exec "$PYTHON" -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
