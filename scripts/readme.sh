#!/bin/sh
# Runs the commands that the README shows under "Use it" and "Measure it", exactly as they stand there.
set -eu
cd "$(dirname "$0")/.."
commands=$(sed -n '/run, in order, by scripts\/readme.sh/,/^```$/p' README.md | grep -E '^(target/release/pixeld|mkdir) ')
[ -n "$commands" ] || { echo "readme: no commands found" >&2; exit 1; }
if [ -n "${CARGO_TARGET_DIR:-}" ]; then
    commands=$(printf '%s\n' "$commands" | sed "s#^target/#$CARGO_TARGET_DIR/#")
fi
printf '%s\n' "$commands" | while IFS= read -r command; do
    echo "\$ $command"
    sh -c "$command"
done
