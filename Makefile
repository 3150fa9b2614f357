# Farhold. `make demo` and `make test` set up all they need; everything else is for developers.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.SUFFIXES:

CARGO ?= cargo
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
TARGET ?= target
BUILD := build
# Paths of this machine stay out of the programs, so that their bytes do not depend on where they were built.
export RUSTFLAGS := $(RUSTFLAGS) --remap-path-prefix=$(CURDIR)=/farhold --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo

FARHOLD := $(TARGET)/release/farhold
AGENT := $(TARGET)/release/farhold-agent
INIT := $(TARGET)/init/$(HOST)/image/farhold-init
PROFILE := recipes/profiles/edge-minimal.yaml
ARTEFACTS := --artefact farhold-agent=$(AGENT) --artefact farhold-init=$(INIT)
IMAGE := $(BUILD)/edge-minimal
PACKAGES := gcc libc6-dev make apt ca-certificates debian-archive-keyring openssh-client

.PHONY: help demo test test-all bench check setup programs image clean
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

setup: ## install the few packages that building needs
	@missing=$$(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $(PACKAGES) 2>/dev/null | awk '$$1=="installed"{print $$2}' \
	  | sed 's/:.*//' | sort | comm -13 - <(printf '%s\n' $(PACKAGES) | sort)); \
	if [ -n "$$missing" ]; then echo "installing: "$$missing; \
	  as=$$([ $$(id -u) = 0 ] || echo sudo); $$as apt-get update -q && DEBIAN_FRONTEND=noninteractive $$as apt-get install -qy --no-install-recommends $$missing; fi
	@command -v $(CARGO) >/dev/null || { echo "make: no cargo: install Rust 1.89 or newer (rustup, or Debian's cargo and rustc), then run this again" >&2; exit 1; }

programs: setup ## build farhold, farhold-agent and farhold-init
	$(CARGO) build --release --bins
	RUSTFLAGS="$$RUSTFLAGS -C target-feature=+crt-static" $(CARGO) build --profile image -p init --target $(HOST) --target-dir $(TARGET)/init

$(BUILD)/keys:
	@mkdir -p $(BUILD)
	$(FARHOLD) keys new $@

image: programs ## bake the demo image for the lab
	@$(MAKE) --no-print-directory $(BUILD)/keys
	$(FARHOLD) lock $(PROFILE) --arch x86_64 --board vm --out $(IMAGE).lock $(ARTEFACTS)
	$(FARHOLD) build $(PROFILE) --arch x86_64 --board vm --lock $(IMAGE).lock --keys $(BUILD)/keys --out $(IMAGE) $(ARTEFACTS)

demo: image ## bake an image, boot it under UEFI, show the device's state, update it over a slow link
	$(FARHOLD) lab up $(IMAGE) --dir $(BUILD)/lab --wait
	$(FARHOLD) lab status --dir $(BUILD)/lab
	$(FARHOLD) lab down --dir $(BUILD)/lab
	$(VM_ENV) $(CARGO) run --release -p qemu-tests --example updates

# What the VM tests look at.
VM_ENV = FARHOLD_TEST_IMAGE_DIR=$(CURDIR)/$(IMAGE) FARHOLD=$(CURDIR)/$(FARHOLD) FARHOLD_AGENT=$(CURDIR)/$(AGENT) FARHOLD_INIT=$(CURDIR)/$(INIT)

# The tests of the pair run real servers in network namespaces.
test: PACKAGES += postgresql iproute2 util-linux
test: image ## all tests that fit in CI
	$(CARGO) test --release --workspace --exclude qemu-tests
	$(VM_ENV) $(CARGO) test --release -p qemu-tests -- --test-threads=1

test-all: test ## and the ones that take longer
	$(CARGO) test --release -p image-builder -- --ignored
	$(CARGO) test --release -p agent --lib -- --ignored --nocapture
	$(CARGO) test --release -p agent --test ha_site campaign -- --ignored --nocapture
	$(VM_ENV) $(CARGO) test --release -p qemu-tests --features long -- --test-threads=1

bench: programs ## farhold beside its peers, with ratios
	$(CARGO) bench -p image-builder --bench bake
	$(CARGO) bench -p image-builder --bench delta
	$(CARGO) test --release -p agent --test ha_site bench -- --ignored --nocapture

check: ## formatting, lints, licences and advisories
	$(CARGO) fmt --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check

clean: ## remove what was built here (the cache outside the tree stays)
	rm -rf $(BUILD) $(TARGET)
