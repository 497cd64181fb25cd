#!/usr/bin/env bash
# Run the tests, in an environment that is made where there is none: ./tests/run_tests.sh [options of pytest, files]
# Several processes share the files of tests; -n 0 runs one after the other.
# ./tests/run_tests.sh gpu [options of pytest] runs the tests of tests/gpu alone, one after the other, and prints what a
# report about a GPU needs.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$ROOT/egs/common.sh"
setup_environment "$ROOT/tests/requirements.txt"
cd "$ROOT/tests"
if [ "${1:-}" = gpu ]; then
    shift
    set -- -n 0 -o verbosity_test_cases=1 -rfEs gpu "$@"
fi
exec "$PYTHON" -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
