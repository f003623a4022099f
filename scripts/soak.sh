#!/bin/sh
# Puts a daemon with the packages of models/ through every kind of client, and reloads, for MINUTES (1 by default) and shows
# what they leave behind; ends with an error if a status, or an image, cannot be explained. ARGS go to pixeld bench soak.
# Usage: scripts/soak.sh [MINUTES [ARGS...]]
set -eu
cd "$(dirname "$0")/.."
minutes=${1:-1}
[ $# -eq 0 ] || shift
pixeld=${CARGO_TARGET_DIR:-target}/release/pixeld
. scripts/daemon.sh

# A copy of the packages, which are changed and spoilt to be reloaded; the socket lies where its path is short.
scratch=$(mktemp -d)
cp -r models "$scratch/models"
start_daemon soak --models "$scratch/models" --set "admin.listen=unix:$scratch/admin.sock"
"$pixeld" bench soak --endpoint "http://$address" --metrics "$metrics" --pid "$daemon" --duration "${minutes}m" \
    --admin "$scratch/admin.sock" --packages "$scratch/models" "$@"
