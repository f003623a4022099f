#!/bin/sh
# Runs what needs PyTorch, with the packages of python/requirements.txt and tests/interop/requirements.txt (fetched once
# into the user's cache).
#     pytorch.sh tests          types and tests of python/, then the daemon beside it, live, and the page on training of the README
#     pytorch.sh bench-peers    step times of pixeld beside those of PyTorch, on the same weights; takes arguments
#     pytorch.sh train NAME     trains models/NAME again
#     pytorch.sh results        held-out likelihoods of the packages, served beside PyTorch's, and of models without neighbours
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
packages=$("$python" scripts/setup.py --print pytorch):$("$python" scripts/setup.py --print interop)
export PYTHONPATH="$PWD/python:$packages" PYTHONDONTWRITEBYTECODE=1
pixeld=${CARGO_TARGET_DIR:-target}/release/pixeld

case "$1" in
tests)
    (cd python && PYTHONPATH="$packages:$("$python" ../scripts/setup.py --print mypy)" "$python" -m mypy)
    "$python" -m unittest discover --start-directory python/tests --verbose
    PIXELD="$pixeld" "$python" -m unittest discover --start-directory python/live --verbose
    # The page of the README, with the package as pip installs it.
    rm -rf out/site
    "$python" -m pip install --quiet --no-deps --no-build-isolation --root-user-action=ignore --target out/site ./python
    PYTHONPATH="$PWD/out/site:$packages" PYTHON="$python" sh scripts/readme.sh python
    ;;
bench-peers)
    shift
    PIXELD="$pixeld" "$python" python/bench/peers.py "$@"
    ;;
results)
    "$python" python/baselines.py
    PIXELD="$pixeld" "$python" python/live/results.py
    ;;
train)
    shift
    PYTHONHASHSEED=0 "$python" python/train.py "$@"
    ;;
*)
    echo "pytorch.sh: unknown task: $1" >&2
    exit 64
    ;;
esac
