#!/bin/sh
# The main job, once through: start the daemon with the package inside the binary, stream 16 digits from it, score real
# digits that it was not trained on. Leaves out/demo.png, and no process.
set -eu
cd "$(dirname "$0")/.."
pixeld=${CARGO_TARGET_DIR:-target}/release/pixeld
python=${PYTHON:-python3}
mkdir -p out
: > out/demo.address

"$pixeld" serve --listen 127.0.0.1:0 > out/demo.address 2> out/demo.log &
daemon=$!
stop() {
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
}
trap stop EXIT
trap 'exit 130' INT TERM

tries=0
while ! grep -q '^ready$' out/demo.address; do
    tries=$((tries + 1))
    if ! kill -0 "$daemon" 2>/dev/null || [ "$tries" -gt 600 ]; then
        echo "demo: the daemon did not start; out/demo.log says:" >&2
        cat out/demo.log >&2
        exit 1
    fi
    sleep 0.1
done
endpoint=http://$(sed -n 's/^listening on //p' out/demo.address)

"$pixeld" sample --endpoint "$endpoint" --model digits --class 0,1,2,3,4,5,6,7,8,9,0,1,2,3,4,5 --seed 7 \
    --out out/demo.png --json > out/demo-sample.json
"$pixeld" score --endpoint "$endpoint" --model digits \
    --npy models/digits/held_out_images.npy --classes models/digits/held_out_classes.npy --json > out/demo-score.json
"$python" scripts/demo_line.py out/demo-sample.json out/demo-score.json
