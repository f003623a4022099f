# Everything a contributor or CI runs. `make help` lists it.

export CARGO_TARGET_DIR ?= $(CURDIR)/target
PYTHON ?= python3
# A macro declares these, behind which rustfmt does not look for files.
FAMILIES = $(wildcard src/model/families/*.rs src/model/families/*/mod.rs)
TOOLS := $(shell $(PYTHON) scripts/setup.py --where 2>/dev/null)/tools

.PHONY: help setup build demo test conformance fuzz fuzz-coverage miri check fmt format clippy deny sbom doc container readme soak drain deployment replicas capacity test-pytorch bench bench-peers train goldens lists otlp results sheets

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## fetch libtorch and the Python packages of the tests into the user's cache; DEVICE=cuda: the libraries for GPUs too
	@sh scripts/prerequisites.sh
	@$(PYTHON) scripts/setup.py
ifeq ($(DEVICE),cuda)
	@echo "engine.cuda_libraries = \"$$($(PYTHON) scripts/setup.py --print cuda)/torch/lib\""
endif

build: setup ## build the daemon in release
	cargo build --release --locked

demo: build ## start the daemon, sample and score digits, write out/demo.png
	@sh scripts/demo.sh

test: setup ## every test that needs no PyTorch
	cargo test --locked

otlp: setup ## the test of what a build with the feature otlp sends to a collector
	cargo test --locked --features otlp --test otlp

conformance: setup ## the laws that every family keeps, and by how much, as a table
	@$(PYTHON) scripts/conformance.py

fuzz: setup ## thousands of random networks on both decode backends, and of damaged checkpoints, manifests, messages, images, settings
	PROPTEST_CASES=$(or $(CASES),2000) cargo test --release --locked --lib decode::tests
	PROPTEST_CASES=$(or $(CASES),2000) cargo test --release --locked --lib manifest
	PROPTEST_CASES=$(or $(CASES),200000) cargo test --release --locked --test hostile
	PROPTEST_CASES=$(or $(CASES),200000) cargo test --release --locked --test it untrusted

fuzz-coverage: setup $(TOOLS)/bin/cargo-fuzz ## fuzz all that is not ours to trust, guided by coverage (needs a nightly toolchain)
	PATH="$(TOOLS)/bin:$$PATH" sh scripts/fuzz.sh

$(TOOLS)/bin/cargo-fuzz:
	cargo install --locked --root $(TOOLS) --version 0.13.2 cargo-fuzz

miri: setup ## interpret the kernels and their unsafe entry, looking for undefined behaviour (needs a nightly toolchain with miri)
	RUSTFLAGS="-C target-feature=+avx2,+fma" cargo +nightly miri test --locked --lib decode::native::tests

check: fmt clippy deny doc deployment ## the checks that are not tests

fmt:
	cargo fmt --all --check -- $(FAMILIES)

format: ## format every source; plain `cargo fmt` does not find the families
	cargo fmt --all -- $(FAMILIES)

clippy: setup
	cargo clippy --locked --all-targets -- -D warnings

deny: $(TOOLS)/bin/cargo-deny
	$(TOOLS)/bin/cargo-deny check bans licenses sources

$(TOOLS)/bin/cargo-deny:
	cargo install --locked --root $(TOOLS) --version 0.20.2 cargo-deny

sbom: $(TOOLS)/bin/cargo-cyclonedx ## list the crates in the binary with their licences, to pixeld.cdx.json (CycloneDX)
	$(TOOLS)/bin/cargo-cyclonedx cyclonedx --format json --spec-version 1.5 --target x86_64-unknown-linux-gnu --no-build-deps

$(TOOLS)/bin/cargo-cyclonedx:
	cargo install --locked --root $(TOOLS) --version 0.5.9 cargo-cyclonedx

doc: setup
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

soak: build ## every kind of client against a daemon for MINUTES=1, and what they leave behind
	@sh scripts/soak.sh $(or $(MINUTES),1) $(ARGS)

drain: build ## how long a daemon takes to end after SIGTERM with the worst clients there are
	@sh scripts/drain.sh

test-pytorch: build ## the tests of python/, the daemon beside the reference, and training as in the README (fetches 3 GB)
	@sh scripts/pytorch.sh tests

bench: build ## step times beside their floors, on one core and on two, and what a daemon carries
	$(CARGO_TARGET_DIR)/release/pixeld bench step --model it-small --batch 1,3,4,16 --repeats 5
	$(CARGO_TARGET_DIR)/release/pixeld bench step --model it-small --backend native --batch 1,3,4 --threads 2 --repeats 5
	$(CARGO_TARGET_DIR)/release/pixeld bench step --model it-base --batch 1,4,16 --repeats 3
	$(CARGO_TARGET_DIR)/release/pixeld bench load --streams 16 --duration 5s --warmup 1s

bench-peers: build ## step times beside PyTorch's on the same weights, to out/peers.md (fetches PyTorch, about 3 GB)
	@sh scripts/pytorch.sh bench-peers --out out/peers.md $(ARGS)

train: ## train a package of models/ again, NAME=digits_row_lstm (fetches PyTorch, about 3 GB)
	@sh scripts/pytorch.sh train $(NAME)

results: build ## held-out likelihoods of the packages: served, PyTorch's, and baselines (fetches PyTorch, about 3 GB)
	@sh scripts/pytorch.sh results

sheets: build ## draw docs/sheets again, a contact sheet of every package
	@sh scripts/sheets.sh

deployment: ## check the chart, the manifests and the Compose file, without a cluster
	@PYTHONPATH="$$($(PYTHON) scripts/setup.py --print deployment):$$($(PYTHON) scripts/setup.py --print kserve)" \
		$(PYTHON) deploy/check.py $(ARGS)

replicas: build ## three replicas behind a proxy: a kill, a drain, a rolling restart, under load
	@PYTHONPATH="$$($(PYTHON) scripts/setup.py --print interop):python" $(PYTHON) deploy/replicas.py $(ARGS)

capacity: build ## hold the capacity model against three replicas behind a proxy
	@PYTHONPATH="$$($(PYTHON) scripts/setup.py --print interop):python" $(PYTHON) deploy/capacity.py $(ARGS)

container: build ## build the container image and try it, as root on Debian 12 (ARGS=--local-bases where no registry is)
	@bash deploy/container.sh $(ARGS)

lists: setup ## write the lists of settings and metrics in docs/ and the seeds of fuzz/ again
	PIXELD_WRITE_DOCS=1 cargo test --locked --lib config::tests::the_list
	PIXELD_WRITE_DOCS=1 cargo test --locked --test metrics the_list
	PIXELD_WRITE_DOCS=1 cargo test --locked --test it the_seeds

readme: build ## run the commands that the README shows
	@sh scripts/readme.sh
