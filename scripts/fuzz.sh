#!/bin/sh
# Runs every fuzz target of fuzz/, or those in TARGETS, for SECONDS_EACH seconds (default 60), from what the repository has of
# its kind. Needs a nightly toolchain and cargo-fuzz. What is found is left in fuzz/artifacts; corpora grow in fuzz/corpus, from
# those in fuzz/corpus.tar.xz, which hold what earlier runs found that reaches other code (the target with -merge=1, up to 4 KiB).
set -eu
cd "$(dirname "$0")/.."
unset CARGO_TARGET_DIR
LD_LIBRARY_PATH=$(python3 scripts/setup.py --print libtorch)/lib
export LD_LIBRARY_PATH
seeds=$(mktemp -d)
trap 'rm -rf "$seeds"' EXIT
[ -d fuzz/corpus ] || { mkdir fuzz/corpus && tar -xJf fuzz/corpus.tar.xz -C fuzz/corpus; }
targets=${TARGETS:-checkpoint pickle safetensors_header manifest image_gpt message png configuration}
for target in checkpoint pickle safetensors_header manifest image_gpt; do mkdir "$seeds/$target"; done
cp -r fuzz/seeds/* "$seeds"
cp deploy/config.example.toml "$seeds/configuration"
cp tests/golden/import/*/*.pth tests/golden/import/*/*.npz "$seeds/checkpoint"
for case in tests/golden/*/*/; do
    name=$(echo "$case" | tr / _)
    cp "${case}model.toml" "$seeds/manifest/$name" 2>/dev/null || true
    cp "${case}weights.safetensors" "$seeds/safetensors_header/$name" 2>/dev/null || true
done
for case in tests/golden/import/image_gpt/*/; do
    name=$(basename "$case")
    for text in "$case"*config.json; do cp "$text" "$seeds/image_gpt/$name.$(basename "$text")"; done
done
for target in $targets; do
    mkdir -p "fuzz/corpus/$target"
    # The code under test has no unsafe blocks, so that panics, overflows and memory are what there is to find.
    cargo +nightly fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "$seeds/$target" -- \
        -max_total_time="${SECONDS_EACH:-60}" -max_len=262144 -rss_limit_mb=2048 -malloc_limit_mb=256
done
