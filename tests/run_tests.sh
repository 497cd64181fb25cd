#!/usr/bin/env bash
# Run the tests, in an environment that is made where there is none: ./tests/run_tests.sh [options of pytest, files]
# Several processes share the files of tests; -n 0 runs one after the other.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$ROOT/egs/common.sh"
setup_environment "$ROOT/tests/requirements.txt"
cd "$ROOT/tests"
exec "$PYTHON" -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
