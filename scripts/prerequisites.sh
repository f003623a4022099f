#!/bin/sh
# Says everything that is missing before anything is fetched or built.
missing=0
need() {
    if ! command -v "$1" >/dev/null 2>&1; then
        echo "missing: $2" >&2
        missing=1
    fi
}
need cargo "a Rust toolchain with cargo (rustup.rs; the version is in rust-toolchain.toml)"
need c++ "a C++ compiler (Debian: apt-get install g++)"
need "${PYTHON:-python3}" "Python 3 (Debian: apt-get install python3)"
if command -v "${PYTHON:-python3}" >/dev/null 2>&1 && ! "${PYTHON:-python3}" -m pip --version >/dev/null 2>&1; then
    echo "missing: pip for ${PYTHON:-python3} (Debian: apt-get install python3-pip)" >&2
    missing=1
fi
exit $missing
