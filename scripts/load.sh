#!/bin/sh
# Measures what docs/RELIABILITY.md tells of load, against a daemon process on this machine: goodput at twice the load that it
# can carry, throughput with slow readers, and what storms of cancelled streams and of connections leave behind. Its own client
# takes its share of the cores. Usage: scripts/load.sh [overload] [slow] [storms]
set -eu
cd "$(dirname "$0")/.."
pixeld=${CARGO_TARGET_DIR:-target}/release/pixeld
python=${PYTHON:-python3}
model=letters
. scripts/daemon.sh

# figure FILE PATH...: a number of a JSON report.
figure() {
    "$python" -c 'import json, sys
value = json.load(open(sys.argv[1]))
for key in sys.argv[2:]: value = value[key]
print(value)' "$@"
}
load() {
    name=$1
    shift
    "$pixeld" bench load --endpoint "http://$address" --model $model --granularity row --connections 2 --json "$@" \
        > "out/load.$name.json"
}
ratio() {
    "$python" -c 'import sys; print(f"{float(sys.argv[1]) / float(sys.argv[2]):.3f}")' "$1" "$2"
}

# A shard for one core, which leaves the other to the client: where both share all cores, every refusal is paid by the engine.
start_daemon load --models models --set engine.shards=1
for what in ${*:-overload slow storms}; do
    case $what in
    overload)
        load capacity --streams 64 --warmup 3s --duration 10s
        capacity=$(figure out/load.capacity.json figures images_per_s)
        for times in 1 2; do
            rate=$("$python" -c "print($capacity * $times)")
            load "x$times" --rate "$rate" --deadline 2s --slo-image 2s --warmup 6s --duration 15s --drain 3s
            echo "overload: $times x $capacity images/s: goodput $(figure "out/load.x$times.json" figures goodput_images_per_s)" \
                "images/s, statuses $(figure "out/load.x$times.json" outcomes status)"
        done
        echo "overload: goodput at 2 x is $(ratio "$(figure out/load.x2.json figures goodput_images_per_s)" \
            "$(figure out/load.x1.json figures goodput_images_per_s)") of that at 1 x"
        ;;
    slow)
        load quick --streams 256 --warmup 8s --duration 15s
        load slow --streams 256 --warmup 8s --duration 15s --slow-share 0.1 --slow-pause 3s
        quick=$(figure out/load.quick.json figures values_per_s)
        slow=$(figure out/load.slow.json figures values_per_s)
        echo "slow readers: $quick values/s without, $slow with 10 % of them: $(ratio "$slow" "$quick")"
        ;;
    storms)
        for storm in cancel connect; do
            for requests in 2000 10000; do
                "$pixeld" bench soak --endpoint "http://$address" --metrics "$metrics" --pid "$daemon" --duration 10m \
                    --traffic $storm --requests $requests --clients 32 --pause 0s > "out/load.$storm.txt"
            done
            sed "s/^/storm of 10000, $storm: /" "out/load.$storm.txt"
        done
        ;;
    esac
done
