# Sourced by scripts that need a daemon: start_daemon NAME ARGS... starts one and sets `daemon` (its process), `address` and
# `metrics` (of its listeners). It ends with the script, and so does the folder `scratch`, if there is one. `pixeld` is the
# binary.

start_daemon() {
    name=$1
    shift
    mkdir -p out
    : > "out/$name.address"
    metrics=127.0.0.1:$("${PYTHON:-python3}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    "$pixeld" serve --listen 127.0.0.1:0 --set "metrics.listen=$metrics" --set log.filter=warn "$@" \
        > "out/$name.address" 2> "out/$name.log" &
    daemon=$!
    trap stop_daemon EXIT
    trap 'exit 130' INT TERM
    tries=0
    while ! grep -q '^ready$' "out/$name.address"; do
        tries=$((tries + 1))
        if ! kill -0 "$daemon" 2>/dev/null || [ "$tries" -gt 600 ]; then
            echo "$name: the daemon did not start; out/$name.log says:" >&2
            cat "out/$name.log" >&2
            exit 1
        fi
        sleep 0.1
    done
    address=$(sed -n 's/^listening on //p' "out/$name.address")
}

stop_daemon() {
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    [ -z "${scratch:-}" ] || rm -rf "$scratch"
}
