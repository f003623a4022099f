# The daemon in an image that holds nothing else: no shell, no package manager. README.md, "In a container", says how it is
# built and run; deploy/container.sh builds and tries it.

# A toolchain on Debian 12, of the version in rust-toolchain.toml. To pin its very bytes: --build-arg RUST_IMAGE=rust@sha256:...
ARG RUST_IMAGE=docker.io/library/rust:1.95.0-bookworm

FROM ${RUST_IMAGE} AS build
# The libraries are those that go into the image: installing them brings their security updates.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-pip libc6 libgcc-s1 libstdc++6 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ARG REVISION
# Symbols stay, so that a backtrace names functions; line tables are 100 MB, seven times the rest of the binary.
ENV PIXELD_CACHE=/cache CARGO_TARGET_DIR=/target CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=debuginfo \
    PIXELD_GIT_REVISION=${REVISION}
# Cargo goes by the times of files; in a cache that other checkouts have used before, an older file may be a different one.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/cache --mount=type=cache,target=/target \
    touch build.rs src/lib.rs src/main.rs \
    && export LIBTORCH="$(python3 scripts/setup.py --print libtorch)" \
    && cargo build --release --locked \
    && make sbom \
    && python3 deploy/rootfs.py --binary /target/release/pixeld --crates pixeld.cdx.json --out /out

FROM scratch AS cpu
# A layer that changes with libtorch and Debian, and one that changes with every commit.
COPY --from=build /out/libraries/ /
COPY --from=build /out/program/ /
ENV PATH=/opt/pixeld/bin PIXELD__SERVER__LISTEN=0.0.0.0:50051 PIXELD__HEALTH__LISTEN=0.0.0.0:50052 \
    PIXELD__MODELS__ROOT=/models
USER 65532:65532
EXPOSE 50051 50052
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["/opt/pixeld/bin/pixeld", "health", "--endpoint", "http://127.0.0.1:50052", "liveness"]
ENTRYPOINT ["/opt/pixeld/bin/pixeld"]
CMD ["serve"]
ARG VERSION
ARG REVISION
ARG SOURCE=https://github.com/pixeld/pixeld
LABEL org.opencontainers.image.title="pixeld" \
    org.opencontainers.image.description="gRPC daemon that samples and scores autoregressive image models" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.source="${SOURCE}" \
    org.opencontainers.image.licenses="Apache-2.0"

FROM build AS build-cuda
RUN --mount=type=cache,target=/cache \
    python3 deploy/rootfs.py --cuda /out/program/opt/pixeld/sbom.cdx.json --out /cuda

# The same for GPUs of NVIDIA, whose driver the runtime brings along. Where there is none it computes on the CPU.
FROM cpu AS cuda
COPY --from=build-cuda /cuda/ /
# TF32 stays off in modules of others too: their scores are to be exact.
ENV PIXELD__ENGINE__CUDA_LIBRARIES=/opt/pixeld/cuda/torch/lib \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility NVIDIA_TF32_OVERRIDE=0
# A file and not the environment, which would go before the file of whoever brings one: a chart that asks for cuda:0.
CMD ["serve", "--config", "/opt/pixeld/cuda.toml"]

# What is built unless another target is named.
FROM cpu
