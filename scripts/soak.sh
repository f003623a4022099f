#!/bin/sh
# Puts a daemon with the packages of models/ through every kind of client for MINUTES (1 by default) and shows what they leave
# behind; ends with an error if a status, or an image, cannot be explained. ARGS go to pixeld bench soak.
# Usage: scripts/soak.sh [MINUTES [ARGS...]]
set -eu
cd "$(dirname "$0")/.."
minutes=${1:-1}
[ $# -eq 0 ] || shift
pixeld=${CARGO_TARGET_DIR:-target}/release/pixeld
. scripts/daemon.sh

start_daemon soak --models models
"$pixeld" bench soak --endpoint "http://$address" --metrics "$metrics" --pid "$daemon" --duration "${minutes}m" "$@"
