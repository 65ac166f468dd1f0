# Every target does its own set-up, says what it installs, and is quick when nothing is missing.
# CARGO_TARGET_DIR and TAPFLEET_CACHE (default .cache: tools, LocalStack) are honoured, so that several clones can share them.

export TAPFLEET_CACHE := $(abspath $(or $(TAPFLEET_CACHE),.cache))
export CARGO_TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
TOOLS := PATH="$(TAPFLEET_CACHE)/tools/bin:$$PATH"

.PHONY: help demo test test-quick soak lint fuzz clean

help:        ## this list
	@sed -n 's/^\([a-z-]*\): .*## /  make \1: /p' Makefile

demo: system localstack  ## the main job without AWS: packets in, objects out, shown step by step
	@echo 'building (the first time takes about ten minutes on two cores)'
	@cargo build --workspace --locked
	@$(CARGO_TARGET_DIR)/debug/demo

test: system localstack moto  ## every suite; a table and the sums at the end
	tests/run.sh all

test-quick: system  ## the suites that need neither root nor S3, in under three minutes
	tests/run.sh quick

soak: system localstack garage  ## load, kills, faults, outages and power losses for MINUTES (60), or one ACT of them; the promises are checked as it goes
	@cargo build --workspace --locked
	@cargo test --workspace --locked --no-run --test sequences --test power --test faults
	@TAPFLEET_SOAK_SECONDS=$$(($(or $(MINUTES),60) * 60)) TAPFLEET_SOAK_ACT='$(ACT)' $(CARGO_TARGET_DIR)/debug/soak

lint: system tools  ## format, clippy, licences and bans of dependencies, scripts
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	$(TOOLS) cargo deny --log-level error check bans licenses sources
	@$(TOOLS) tests/advisories.sh
	shellcheck .ci/run tests/*.sh tests/setup/*.sh terraform/modules/*/*.sh.tftpl
	@"$$(tests/setup/terraform.sh)" -chdir=terraform fmt -check -recursive

fuzz: system tools  ## any bytes into the decoder, for a minute
	$(TOOLS) RUSTC_BOOTSTRAP=1 cargo fuzz run decap -- -max_total_time=60

clean:       ## compiled code, tools and caches
	cargo clean
	rm -rf .cache

.PHONY: system tools localstack moto garage
system:
	@tests/setup/system.sh
tools: system
	@tests/setup/tools.sh
localstack: system
	@tests/setup/localstack.sh >/dev/null
moto: system
	@tests/setup/moto.sh >/dev/null
garage: system
	@tests/setup/garage.sh >/dev/null
