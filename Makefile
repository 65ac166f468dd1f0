# Every target does its own set-up, says what it installs, and is quick when nothing is missing.
# CARGO_TARGET_DIR and TAPFLEET_CACHE (default .cache: tools, LocalStack) are honoured, so that several clones can share them.

export TAPFLEET_CACHE := $(abspath $(or $(TAPFLEET_CACHE),.cache))
export CARGO_TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
TOOLS := PATH="$(TAPFLEET_CACHE)/tools/bin:$$PATH"

.PHONY: help demo test test-quick soak bench package image lint fuzz clean

help:        ## this list
	@sed -n 's/^\([a-z-]*\): .*## /  make \1: /p' Makefile

demo: system localstack  ## the main job without AWS: packets in, objects out, shown step by step
	@echo 'building (the first time takes about ten minutes on two cores)'
	@cargo build --workspace --locked
	@$(CARGO_TARGET_DIR)/debug/demo

test: system localstack moto package system-image  ## every suite; a table and the sums at the end
	tests/run.sh all

test-quick: system  ## the suites that need neither root nor S3, in under three minutes
	tests/run.sh quick

soak: system localstack garage  ## load, kills, faults, outages and power losses for MINUTES (60), or one ACT of them; the promises are checked as it goes
	@cargo build --workspace --locked
	@cargo test --workspace --locked --no-run --test sequences --test power --test faults
	@TAPFLEET_SOAK_SECONDS=$$(($(or $(MINUTES),60) * 60)) TAPFLEET_SOAK_ACT='$(ACT)' $(CARGO_TARGET_DIR)/debug/soak

bench: system  ## the agent and its peers on the same traffic, in one run: tables, tests/bench/RESULTS.md; BENCH="--quick --only capture"
	@aws=$$(tests/setup/bench.sh) && cargo build --release --workspace --locked --bin tapfleetd --bin tapfleet --bin bench && \
		TAPFLEET_BENCH_AWS=$$aws $(CARGO_TARGET_DIR)/release/bench $(BENCH)

package: system-package  ## the .deb and the .rpm of this commit, into target/package; the first time takes a quarter of an hour
	@packaging/package.sh

image:       ## the machine image (AMI) of this commit, with packer 1.7 or later; PACKER='-var distribution=debian-12 ...' sets variables
	@packer/image.sh $(PACKER)

lint: system tools  ## format, clippy, licences and bans of dependencies, scripts
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	$(TOOLS) cargo deny --log-level error check bans licenses sources
	@$(TOOLS) tests/advisories.sh
	shellcheck .ci/run tests/*.sh tests/setup/*.sh terraform/modules/*/*.sh.tftpl packaging/*.sh packaging/scripts/* packer/*.sh packer/provision/* \
		packaging/rootfs/usr/lib/tapfleet/nic
	@"$$(tests/setup/terraform.sh)" -chdir=terraform fmt -check -recursive
	@"$$(tests/setup/ruff.sh)" check --quiet --no-cache tests
	@"$$(tests/setup/ruff.sh)" format --quiet --check --no-cache tests

fuzz: system tools  ## any bytes into the decoder, for a minute
	$(TOOLS) RUSTC_BOOTSTRAP=1 cargo fuzz run decap -- -max_total_time=60

clean:       ## compiled code, tools and caches
	cargo clean
	rm -rf .cache

.PHONY: system system-package system-image tools localstack moto garage
system:
	@tests/setup/system.sh
system-package:
	@tests/setup/system.sh package
# What cannot be had here is missing to two suites, which say so.
system-image: system-package
	-@tests/setup/system.sh image
tools: system
	@tests/setup/tools.sh
localstack: system
	@tests/setup/localstack.sh >/dev/null
moto: system
	@tests/setup/moto.sh >/dev/null
garage: system
	@tests/setup/garage.sh >/dev/null
