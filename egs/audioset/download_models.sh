#!/usr/bin/env bash
# Download the published checkpoints, all of them or those that you name:
# ./download_models.sh [--source dropbox|huggingface] [NAME ...]
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$HERE/../common.sh"
setup_environment
exec "$PYTHON" "$HERE/download_models.py" "$@"
