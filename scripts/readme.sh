#!/bin/sh
# Runs the commands that the README shows.
#     readme.sh           those under "Use it" and "Measure it", exactly as they stand there
#     readme.sh python    those under "Train, export, serve, sample", with a short training and a port of their own, by
#                         the Python that $PYTHON names, which must find the package `pixeld`
set -eu
cd "$(dirname "$0")/.."
block() {
    sed -n "/in this block are run.* .*scripts\\/readme.sh$1/,/^\`\`\`\$/p" README.md
}
target=${CARGO_TARGET_DIR:-target}
if [ "${1:-}" = python ]; then
    python=${PYTHON:-python3}
    commands=$(block " python" | sed -e '1,/^```sh$/d' -e '/^```$/d')
    [ -n "$commands" ] || { echo "readme: no commands found" >&2; exit 1; }
    port=$("$python" -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
    rm -rf out/readme
    mkdir -p out/readme
    # The daemon goes with whatever ends the commands.
    { echo 'trap "kill \$! 2>/dev/null" EXIT'; printf '%s\n' "$commands"; } | sed -e "s#^python #$python #" \
        -e "s#^target/#$target/#" -e "s#out/#out/readme/#g" -e "s/--epochs 30/--epochs 1/" \
        -e "s/127.0.0.1:50051/127.0.0.1:$port/" -e "s/ serve / serve --listen 127.0.0.1:$port /" \
        > out/readme/commands.sh
    sh -eux out/readme/commands.sh
    for sheet in mine run/samples; do
        [ -s "out/readme/$sheet.png" ] || { echo "readme: $sheet.png was not drawn" >&2; exit 1; }
    done
    exit
fi
commands=$(block "\\." | grep -E '^(target/release/pixeld|mkdir) ')
[ -n "$commands" ] || { echo "readme: no commands found" >&2; exit 1; }
commands=$(printf '%s\n' "$commands" | sed "s#^target/#$target/#")
printf '%s\n' "$commands" | while IFS= read -r command; do
    echo "\$ $command"
    sh -c "$command"
done
