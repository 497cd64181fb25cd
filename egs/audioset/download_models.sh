#!/usr/bin/env bash
# Download the published checkpoints, all of them or those that you name:
# ./download_models.sh [--source dropbox|huggingface] [NAME ...]
set -euo pipefail
unset CDPATH # with it, cd prints where it goes
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$HERE/../common.sh"
case "$*" in
    --help | -h) find_python && PYTHON=$ANY_PYTHON ;; # needs no package
    *) setup_environment ;;
esac
exec "$PYTHON" "$HERE/download_models.py" "$@"
