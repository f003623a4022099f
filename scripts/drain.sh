#!/bin/sh
# Measures how long a daemon takes to end after SIGTERM with the worst clients there are, limit by limit: sockets that say
# nothing, streams that nobody reads, and streams that take longer than the limit. Each must be within the limit + 1 s.
# Usage: scripts/drain.sh [LIMIT_SECONDS...]
set -eu
cd "$(dirname "$0")/.."
pixeld=${CARGO_TARGET_DIR:-target}/release/pixeld
python=${PYTHON:-python3}
. scripts/daemon.sh
# One slot, so that the 256 images of a client take far longer than any limit.
slow="--models models --set engine.shards=1 --set engine.slots=1"

# measure NAME LIMIT: ends the daemon, and tells how long that took.
measure() {
    case_name=$1 limit=$2
    begun=$("$python" -c 'import time; print(time.monotonic())')
    kill "$daemon"
    code=0
    wait "$daemon" || code=$?
    "$python" - "$begun" "$limit" "$case_name" "$code" <<'PY'
import sys, time
begun, limit, case, code = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]
took = time.monotonic() - begun
print(f"{case:<28} limit {limit:4.1f} s   ended after {took:6.2f} s   exit code {code}")
sys.exit(0 if took <= limit + 1 else 1)
PY
}

failed=0
for limit in ${*:-0 1 3}; do
    for case_name in idle silent unread long; do
        # shellcheck disable=SC2086
        start_daemon drain $slow --set "server.drain_timeout=${limit}s"
        clients=
        case $case_name in
        idle) ;;
        silent)
            "$python" - "$address" <<'PY' &
import socket, sys, time
host, port = sys.argv[1].rsplit(":", 1)
sockets = [socket.create_connection((host, int(port))) for _ in range(50)]
for half in sockets[:25]:
    half.sendall(b"PRI * HTTP/2.0\r\n\r\n")
time.sleep(60)
PY
            clients=$!
            ;;
        unread)
            "$pixeld" bench load --endpoint "http://$address" --model letters --images 64 --streams 4 \
                --slow-share 1 --slow-pause 60s --warmup 0s --duration 60s --drain 0s > out/drain.clients 2>&1 &
            clients=$!
            ;;
        long)
            "$pixeld" bench load --endpoint "http://$address" --model letters --images 64 --streams 4 \
                --warmup 0s --duration 60s --drain 0s > out/drain.clients 2>&1 &
            clients=$!
            ;;
        esac
        if [ -n "$clients" ]; then
            sleep 2
            kill -0 "$clients" || { echo "$case_name: its clients are gone" >&2; failed=1; }
        fi
        measure "$case_name" "$limit" || failed=1
        [ -z "$clients" ] || { kill "$clients" 2>/dev/null || true; wait "$clients" 2>/dev/null || true; }
    done
done
exit "$failed"
