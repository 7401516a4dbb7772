# The only way in; CI calls the same targets. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup demo test check c-header install wheel conformance fmt bench bench-python bench-unmodified chaos chaos-scale vm-test cluster-up cluster-down cluster-test scale-test arm64 loom fuzz clean

ARGS ?=
export PREFIX DESTDIR LIBDIR

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## install what building and testing need, if it is missing
	@scripts/setup.sh

demo: setup ## broker, route agent and eight pods for about 20 s (ARGS=... for podshm-demo)
	@scripts/demo.sh $(ARGS)

test: setup ## every tier of scripts/tiers (ONLY=unit picks one)
	@scripts/test.sh

check: ## fmt, clippy, docs, licences, crate direction, podshm.h (ONLY=clippy picks one)
	@scripts/setup.sh deny capi
	@scripts/check.sh

c-header: ## make crates/podshm-capi/include/podshm.h of the sources
	@scripts/setup.sh capi
	@PATH="$${PODSHM_TOOLS:-$${XDG_CACHE_HOME:-$$HOME/.cache}/podshm/tools}/bin:$$PATH" scripts/c-header

install: ## programs, libraries, headers, man pages, completions into PREFIX=/usr/local (DESTDIR=, LIBDIR=lib)
	@scripts/install.sh

wheel: ## the Python wheel into target/wheels, for glibc 2.17 and later
	@scripts/wheel.sh

conformance: setup ## the conformance suite in every pair of languages: Rust, C, C++, Python
	@scripts/wheel.sh tools
	cargo build -p podshm-testkit --bins # what pods are made with
	cargo test -p podshm-tests --test conformance -- --include-ignored --test-threads=1

fmt: ## format the sources
	cargo fmt --all

bench-unmodified: ## unmodified programs, preload beside native in one run: shmget+shmat, pgbench (ROUNDS=8, SECONDS_EACH=6)
	@scripts/setup.sh unmodified
	@scripts/bench-unmodified.sh

bench: setup ## podshm beside its peers, in one run (ARGS=... for podshm-bench)
	library=$$(scripts/c-library) && PODSHM_C_LIBRARY=$$library/libpodshm_capi.so cargo run --release -p podshm-bench -- $(ARGS)
	$(if $(ARGS),,@scripts/bench-python.sh)

bench-python: setup ## a small call in Python beside multiprocessing.connection, in one run (ARGS='--rounds 8 --spin-us 50')
	@scripts/bench-python.sh $(ARGS)

chaos: setup ## kills, stops, upgrades, squeezes under load for DURATION=600 s (SEED=..., CLIENTS=8)
	@scripts/chaos.sh $(ARGS)

chaos-scale: setup ## longest gaps with 1, 100 and 1,000 clients, and when a dead client's memory is back
	@scripts/chaos.sh scale $(ARGS)

vm-test: ## charges and memory limits on Debian's kernel 6.1 with cgroup v2, under QEMU (ARGS='charges seals')
	@scripts/setup.sh vm
	@scripts/vm-test.sh $(ARGS)

cluster-up: ## a real Kubernetes cluster on this machine: two nodes or three, containerd (the first time builds it: 10 min or more)
	@scripts/setup.sh cluster
	@scripts/cluster.sh up

cluster-down: ## takes it down, and checks that nothing of it is left
	@scripts/cluster.sh down

cluster-test: ## the tests that need a cluster, on one of their own (ONLY=schemes picks one group, KEEP=1 leaves it up; KUBECONFIG=… IMAGE_REGISTRY=… takes another)
	@scripts/setup.sh cluster
	@scripts/cluster.sh test

arm64: ## everything that goes into images, cross-built for arm64, and the memory's own tests under emulation (PROFILE=release)
	@scripts/setup.sh arm64
	@scripts/arm64.sh

scale-test: ## a rollout over 1,000 simulated nodes and 10,000 pods on a real API server (not a part of make test)
	@scripts/setup.sh cluster
	@scripts/cluster.sh scale

loom: setup ## the loom models of ring, table and wake-up (LOOM_MAX_PREEMPTIONS=3)
	@scripts/loom.sh $(ARGS)

fuzz: ## every fuzz target for FUZZ_SECONDS=60 each
	@scripts/fuzz.sh

clean: ## remove what was built
	cargo clean
