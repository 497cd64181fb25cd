#!/usr/bin/env bash
# Run the tests: ./tests/run_tests.sh [options of pytest, files]
# If there is no environment yet, one is made. Several processes share the test files; -n 0 runs one
# file after the other.
# ./tests/run_tests.sh gpu [options of pytest] runs only the tests in tests/gpu, one after the
# other, and prints what a report about a GPU needs.
set -euo pipefail
unset CDPATH # with it, cd prints where it goes
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$ROOT/egs/common.sh"
setup_environment "$ROOT/tests/requirements.txt"
cd "$ROOT/tests"
if [ "${1:-}" = gpu ]; then
    shift
    set -- -n 0 -o verbosity_test_cases=1 -rfEs gpu "$@"
fi
# Programs that tests start would compile src again and again if bytecode were not kept.
export PYTHONDONTWRITEBYTECODE=
exec "$PYTHON" -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
