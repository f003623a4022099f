#!/usr/bin/env bash
# Builds the image of the daemon and tries it as it would run: read-only, without capabilities, as uid 65532, over the
# network.
#
#     container.sh [--local-bases] [--cuda]
#
# With a Docker daemon at hand it uses that, otherwise buildah and podman, as root. Leaves the image pixeld:cpu, and
# nothing that runs. With `--cuda` it builds pixeld:cuda too, and tries what can be tried of it without a GPU.
#
# `--local-bases` is for machines that reach Debian's packages but no registry of images: what the Dockerfile starts
# from is made here, of Debian 12 and this machine's Rust toolchain, with this machine's settings for apt, pip and cargo.
# They are in the stage that builds, and not in the image, which starts from nothing. Everything then lives in
# $PIXELD_CACHE/containers, apart from the other images of this machine, since such a base goes by another's name.
set -euo pipefail
cd "$(dirname "$0")/.."

local_bases=
cuda=
for argument in "$@"; do
    case $argument in
    --local-bases) local_bases=1 ;;
    --cuda) cuda=1 ;;
    *) echo "usage: container.sh [--local-bases] [--cuda]" >&2; exit 64 ;;
    esac
done
image=localhost/pixeld:cpu
pixeld=${CARGO_TARGET_DIR:-target}/release/pixeld
python=${PYTHON:-python3}
name=pixeld-try-$$
out=out/container
rm -rf $out
mkdir -p $out

say() { printf '%-24s %s\n' "$1" "$2"; }
fail() { echo "container: $1" >&2; exit 1; }
now() { date +%s%3N; }
since() { awk -v ms=$(($(now) - $1)) 'BEGIN { printf "%.2f s", ms / 1000 }'; }

# --- The tools that are needed, and where images are kept

if [ -z "$local_bases" ] && docker info > /dev/null 2>&1; then
    docker=1
else
    docker=
    missing=
    for tool in buildah podman runc ${local_bases:+debootstrap}; do
        command -v $tool > /dev/null || [ -x /usr/sbin/$tool ] || missing="$missing $tool"
    done
    [ -z "$missing" ] || fail "missing:$missing (Debian: apt-get install$missing)"
    [ "$(id -u)" = 0 ] || fail "buildah and podman are run as root here"
fi
[ -x "$pixeld" ] || fail "there is no $pixeld to call the container with: make build"

if [ -n "$local_bases" ]; then
    store=$("$python" scripts/setup.py --where)/containers
    mkdir -p "$store/tmp"
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "/run/pixeld-containers"\n' "$store/images" \
        > "$store/storage.conf"
    export CONTAINERS_STORAGE_CONF=$store/storage.conf TMPDIR=$store/tmp
fi

engine() { if [ -n "$docker" ]; then docker "$@"; else podman --runtime runc "$@"; fi; }

# What fails is told, but not that podman misses systemd, at every step, to run the health check by the clock.
quietly() { engine "$@" 2> $out/engine.log || fail "$1: $(tail -n 5 $out/engine.log)"; }

cleanup() {
    kill "${client:-}" 2> /dev/null || true
    engine rm --force $name > /dev/null 2>&1 || true
    [ -z "${tree:-}" ] || rm -rf --one-file-system "$tree"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# --- Build

# The Dockerfile's base: Debian 12 with the tools that the official image has too, and this machine's toolchain.
make_base() {
    tree=$(mktemp -d)
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | sed -n 1p)
    debootstrap --variant=minbase --include=ca-certificates,g++,make bookworm "$tree" ${mirror:+"$mirror"} \
        > $out/debootstrap.log || fail "debootstrap: $(tail -n 3 $out/debootstrap.log)"
    toolchain=$(rustc --print sysroot)
    mkdir -p "$tree/usr/local/rust" "$tree/usr/local/cargo"
    cp -a "$toolchain/bin" "$toolchain/lib" "$toolchain/libexec" "$tree/usr/local/rust"
    cargo=${CARGO_HOME:-$HOME/.cargo}/config.toml
    ! [ -f "$cargo" ] || cp "$cargo" "$tree/usr/local/cargo"
    rm -f "$tree/etc/apt/sources.list"
    cp -a --parents $(ls -d /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/apt.conf.d /etc/apt/trusted.gpg.d \
        /etc/pip.conf 2> /dev/null) "$tree"
    cp -L --parents /etc/ssl/certs/ca-certificates.crt "$tree"
    tar --directory "$tree" --create . | podman import --quiet \
        --change 'ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'ENV CARGO_HOME=/usr/local/cargo' - "$1" > /dev/null
    rm -rf --one-file-system "$tree"
    tree=
}

rust=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
base=$(sed -n 's/^ARG RUST_IMAGE=//p' Dockerfile)
case $base in
*:"$rust"-*) ;;
*) fail "Dockerfile starts from $base, but rust-toolchain.toml says $rust" ;;
esac
if [ -n "$local_bases" ] && ! podman image exists "$base"; then
    began=$(now)
    make_base "$base"
    say "base made in" "$(since "$began")"
fi

version=$(sed -n '0,/^version = /s/^version = "\(.*\)"/\1/p' Cargo.toml)
revision=$(git rev-parse --short=12 HEAD)
arguments=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision")
if [ -n "$docker" ]; then
    build=(docker build)
else
    # HEALTHCHECK is part of Docker's format alone.
    build=(buildah build --isolation chroot --network host --layers --format docker ${local_bases:+--pull-never})
fi
build() {
    began=$(now)
    "${build[@]}" "${arguments[@]}" --target "$1" --tag "localhost/pixeld:$1" . > $out/build.log 2>&1 ||
        { tail -n 40 $out/build.log >&2; fail "the build failed"; }
    say "image built in" "$(since "$began")"
}
build cpu

# --- What is in it

size() {
    bytes=$(quietly image inspect --format '{{.Size}}' "$1")
    say "image size" "$((bytes / 1000000)) MB in $(quietly image inspect --format '{{len .RootFS.Layers}}' "$1") layers"
    quietly history --format '{{.Size}}' "$1" | awk '$0 !~ /^0 ?B/ { printf "%-24s %s\n", "  layer", $0 }'
}
size $image
quietly create --name $name $image > /dev/null
quietly cp $name:/opt/pixeld/sbom.cdx.json $out/sbom.cdx.json
quietly export $name | tar --list --verbose > $out/files
quietly rm $name > /dev/null
programs=$(awk '$1 ~ /^[-l]/ { print $6 }' $out/files | grep -E '(^|/)s?bin/' | xargs)
[ "$programs" = opt/pixeld/bin/pixeld ] || fail "the image has other programs than ours: $programs"
! grep -E '^-..[sS]|^-.{5}[sS]' $out/files || fail "the image has files with a set-user-ID or set-group-ID bit"
say "programs" "$programs"
"$python" - $out/sbom.cdx.json << 'PYTHON'
import collections, json, sys
components = json.load(open(sys.argv[1]))["components"]
kinds = collections.defaultdict(list)
for component in components:
    kinds[component.get("purl", ":").split(":")[1].split("/")[0]].append(component)
crates = kinds["cargo"]
print(f"{'crates':<24} {len(crates)}, of which {sum('licenses' in crate for crate in crates)} name their licences")
for component in kinds["deb"] + kinds["pypi"] + kinds[""]:
    files = [entry["value"] for entry in component.get("properties", []) if entry["name"] == "pixeld:file"]
    print(f"  {component['name'] + ' ' + component['version']:<38} {' '.join(files)}")
PYTHON

# --- Run it

# What podman sets if it is not told, it may not set everywhere: limits above those of this machine, and room to write.
limits=(--read-only --cap-drop ALL --security-opt no-new-privileges --ulimit nofile=1024:1024 --ulimit nproc=1000:1000)
[ -n "$docker" ] || limits+=(--read-only-tmpfs=false)

# Starts a container with further arguments of `run`, and waits until it is ready.
start() {
    local began
    rm -f $out/stdout $out/stderr # or an earlier container's word would be taken for this one's
    began=$(now)
    engine run --rm --name $name "${limits[@]}" --publish 127.0.0.1::50051 "$@" $image > $out/stdout 2> $out/stderr &
    container=$!
    until grep -qs '^ready$' $out/stdout; do
        kill -0 $container 2> /dev/null || fail "the container ended: $(tail -n 20 $out/stderr)"
        [ $(($(now) - began)) -lt 120000 ] || fail "not ready after two minutes: $(tail -n 20 $out/stderr)"
        sleep 0.02
    done
    say "start to ready" "$(since "$began")"
    endpoint=http://$(quietly port $name 50051)
    pid=$(quietly inspect --format '{{.State.Pid}}' $name)
}

# Waits for the container to end after its signal, which was sent at $1: by itself, not killed at the end of its time.
ended() {
    local code=0
    wait $container || code=$?
    [ $code = 0 ] || fail "the container ended with $code: $(tail -n 20 $out/stderr)"
    say "signal to exit" "$(since "$1"), exit code 0"
}

stop() { quietly stop --time 45 $name > /dev/null; }

stop_at_leisure() {
    began=$(now)
    stop
    ended "$began"
}

# Lines of the table of models that say `ready`, by name.
ready() { "$pixeld" models --endpoint "$endpoint" | awk '$2 == "ready" { print $1 }' | sort | xargs; }

code=0
engine run --rm "${limits[@]}" $image health --endpoint http://127.0.0.1:50052 liveness > /dev/null 2>&1 || code=$?
[ $code = 69 ] || fail "without a server, the health check ended with $code"

start
grep -q "^Uid:.65532.65532.65532.65532$" /proc/$pid/status || fail "it runs as $(grep Uid: /proc/$pid/status)"
grep -q '^CapBnd:.0*$' /proc/$pid/status || fail "it can have capabilities: $(grep CapBnd: /proc/$pid/status)"
say "user, capabilities" "65532, none"
[ "$(ready)" = digits ] || fail "it serves $(ready) instead of digits"
if [ -n "$docker" ]; then
    until [ "$(docker inspect --format '{{.State.Health.Status}}' $name)" != starting ]; do sleep 1; done
    [ "$(docker inspect --format '{{.State.Health.Status}}' $name)" = healthy ] || fail "it is not healthy"
else
    quietly healthcheck run $name > /dev/null
fi
say "health check" "69 without a server, 0 with one"

draw=(--model digits --class 0,1,2,3,4,5,6,7,8,9 --count 2 --seed 7)
"$pixeld" sample --endpoint "$endpoint" "${draw[@]}" --npy $out/container.npy
"$pixeld" sample "${draw[@]}" --npy $out/here.npy
cmp $out/container.npy $out/here.npy || fail "a seed gives other images in the container"
say "sampled" "20 images, the bytes that the binary gives outside"
held_out=(--model digits --npy models/digits/held_out_images.npy --classes models/digits/held_out_classes.npy --json)
"$pixeld" score --endpoint "$endpoint" "${held_out[@]}" | tail -n 1 > $out/container.json
"$pixeld" score "${held_out[@]}" | tail -n 1 > $out/here.json
scored=$("$python" -c '
import json, sys
inside, outside = (json.load(open(path)) for path in sys.argv[1:])
assert inside["mean_bits_per_dim"] == outside["mean_bits_per_dim"], (inside, outside)
print("{items} images at {mean_bits_per_dim:.4f} bits/dim, as outside".format(**inside))
' $out/container.json $out/here.json)
say "scored" "$scored"
stop_at_leisure

# With a volume of models that changes while it runs: Prometheus reads, an operator loads one package and replaces another.
volume=$PWD/$out/models socket=$out/run/admin.sock
mkdir -p "$volume" $out/run
cp -R models/digits "$volume"
chmod 777 $out/run # as whom it runs inside is nobody here
start --volume "$volume:/models:ro" --volume "$PWD/$out/run:/run/pixeld" --publish 127.0.0.1::9464 \
    --env PIXELD__MODELS__EMBEDDED=false --env PIXELD__METRICS__LISTEN=0.0.0.0:9464 \
    --env PIXELD__ADMIN__LISTEN=unix:/run/pixeld/admin.sock
[ "$(ready)" = digits ] || fail "it serves $(ready) instead of digits"
"$pixeld" sample --endpoint "$endpoint" "${draw[@]}" --npy $out/volume.npy
began=$(now)
until # Gauges are set once a second.
    "$python" -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).read().decode())' \
        "http://$(quietly port $name 9464)/metrics" > $out/metrics
    grep -q '^pixeld_model_ready{model="digits"} 1$' $out/metrics
do
    [ $(($(now) - began)) -lt 5000 ] || fail "metrics do not say that digits is ready"
done
grep -q '^pixeld_images_finished_total{.*} [1-9]' $out/metrics || fail "metrics do not say that images were drawn"
say "metrics" "$(grep -c '^pixeld_' $out/metrics) samples, read from outside"
revision() { "$pixeld" models --endpoint "$endpoint" --json | "$python" -c '
import json, sys
models = [json.loads(line) for line in sys.stdin]
print(*(model["revision"] for model in models if model["name"].removeprefix("models/") == sys.argv[1]))' "$1"; }
before=$(revision digits)
cp -R models/letters "$volume"
sed -i 's/^description = .*/description = "Replaced while it was served"/' "$volume/digits/model.toml"
"$pixeld" admin --socket $socket load letters > /dev/null || fail "letters was not loaded"
"$pixeld" admin --socket $socket reload digits > /dev/null || fail "digits was not loaded again"
[ "$(ready)" = "digits letters" ] || fail "it serves $(ready) instead of digits and letters"
after=$(revision digits)
[ -n "$after" ] && [ "$after" != "$before" ] || fail "digits is still of revision $before"
"$pixeld" sample --endpoint "$endpoint" "${draw[@]}" --npy $out/reloaded.npy
cmp $out/volume.npy $out/reloaded.npy || fail "the same weights draw other images after they were loaded again"
say "changed volume" "a package loaded, one replaced: revision $before is now $after"
stop_at_leisure

# With a volume of models, stopped in the middle of a request.
start --volume "$PWD/models:/models:ro"
packages=$(cd models && ls -d -- */ | tr -d / | sort | xargs)
[ "$(ready)" = "$packages" ] || fail "it serves $(ready) instead of $packages"
say "models volume" "$(wc -w <<< "$packages") packages ready"

# Time on a processor that the container has had, in ticks of 10 ms.
worked() { awk '{ print $14 + $15 }' /proc/$pid/stat; }
before=$(worked)
"$pixeld" upscale --endpoint "$endpoint" --model letters_upscale --count 64 --out-dir $out/drained \
    models/letters_upscale/examples/*.png &
client=$!
until [ $(($(worked) - before)) -gt 50 ]; do
    kill -0 $client 2> /dev/null || fail "the long request ended before the signal"
    sleep 0.02
done
began=$(now)
stop &
until grep -q draining $out/stderr; do
    kill -0 $container 2> /dev/null || fail "it did not drain: $(cat $out/stderr)"
    sleep 0.02
done
code=0
"$pixeld" sample --endpoint "$endpoint" --model letters --class 0 > /dev/null 2> $out/refused || code=$?
kill -0 $client 2> /dev/null || fail "the request was not running any more during the drain"
[ $code = 69 ] || fail "a request during the drain ended with $code: $(cat $out/refused)"
wait $client || fail "the running request was cut"
client=
! grep -q 'requests were cut' $out/stderr || fail "the drain took too long"
say "drained" "$(ls $out/drained | wc -l) images that were being drawn came whole; a new request was refused"
ended "$began"

# The image for GPUs, on a machine that need not have one: without a driver it says so, or computes on the CPU.
if [ -n "$cuda" ]; then
    build cuda
    image=localhost/pixeld:cuda
    size $image
    code=0
    engine run --rm "${limits[@]}" --env PIXELD__ENGINE__DEVICE=cuda:63 $image > $out/stdout 2> $out/stderr || code=$?
    [ $code = 64 ] && grep -qE '^error: engine.device: (no GPU can be used|there are)' $out/stderr ||
        fail "a GPU that is not there ended with $code: $(tail -n 5 $out/stderr)"
    say "without the GPU" "$(tail -n 1 $out/stderr)"
    start
    devices=$("$pixeld" models --endpoint "$endpoint" --json |
        "$python" -c 'import json, sys; print(*{json.loads(line)["device"] for line in sys.stdin})')
    "$pixeld" sample --endpoint "$endpoint" "${draw[@]}" --npy $out/auto.npy
    say "device = auto" "digits is on $devices, and draws"
    stop_at_leisure
fi
say "tried" "the image, and left nothing that runs"
