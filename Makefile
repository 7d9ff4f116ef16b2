# `make` lists the targets. Results of the set-up are cached outside the checkout (LIFEBOAT_CACHE, ~/.cache/lifeboat).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Most tests wait for servers. Those of the lab take turns by themselves.
export RUST_TEST_THREADS ?= $(shell echo $$((3 * $$(nproc))))
.PHONY: help setup build fmt lint deny test fuzz demo bench lab-up lab-down lab-status lab-writer lab-test clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## install and build what the tests need (part of `make test`)
	tests/tools/setup test

build: ## the release binary, target/release/lifeboat
	tests/tools/setup build
	cargo build --release --locked

fmt: ## format the sources
	cargo fmt

lint: ## formatting and clippy
	tests/tools/setup build
	cargo fmt --check
	cargo fetch --quiet --locked --manifest-path tests/fuzz/Cargo.toml # its Cargo.lock is right
	cargo clippy --locked --all-targets -- -D warnings

deny: ## licences, sources and duplicates of the dependencies
	cargo fetch --locked --quiet
	"$$(tests/tools/setup --deny)" --offline --locked check bans licenses sources

test: setup ## everything that must hold before a change lands; real clusters too, so as root
	tests/lab/check
	$(MAKE) lint
	cargo test --locked
	$(MAKE) deny

fuzz: ## fuzz every decoder, SECONDS=30 each (one decoder, longer: see tests/fuzz/run)
	tests/tools/setup build
	for target in $$(ls tests/fuzz/corpus); do tests/fuzz/run "$$target" -max_total_time=$(or $(SECONDS),30); done

demo: ## lose a real etcd and bring it back, measured (a few minutes, mostly compiling)
	tests/tools/setup demo
	cargo build --release --locked
	tests/demo/run

bench: ## compare with restic and kopia, write docs/benchmarks.md (BENCH="--scale 0.05 --rows a,c" for a small run)
	tests/tools/setup bench
	cargo build --release --locked --bin lifeboat
	cargo bench --locked --bench generate --no-run
	benches/run $(BENCH)

lab-up: ## a real Kubernetes cluster with the whole platform, as root (LAB=region-b for a second one; docs/lab.md)
	tests/tools/setup lab
	tests/lab/up $(or $(LAB),region-a)
	tests/lab/platform/up $(or $(LAB),region-a)

lab-down: ## stop that cluster and remove all of it
	tests/lab/down $(or $(LAB),region-a)

lab-status: ## what of the clusters is ready
	tests/lab/status

lab-writer: ## keep writing numbered records into every system of it (DO=stop; DO=report says what is there and what is lost)
	tests/lab/platform/writer $(or $(LAB),region-a) $(or $(DO),start)

lab-test: ## the part of `make test` that loses a node and an application on real clusters, as root (minutes; the first time, half an hour)
	tests/tools/setup test
	cargo test --locked --test lab

clean: ## remove what was built here (the cache stays)
	cargo clean
