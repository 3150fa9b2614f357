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

.PHONY: help demo test test-all bench check setup programs image pair-image clean programs-arm64 programs-x86_64 image-arm64 image-x86_64 old-image
help: ## this list
	@grep -hE '^[a-z][a-zA-Z0-9_ $$()-]*:.*## ' $(MAKEFILE_LIST) | sed 's/$$(OTHER)/$(OTHER)/; s/: image-%//' | awk -F ':.*## ' '{printf "make %-25s %s\n", $$1, $$2}'

setup: ## install the few packages that building needs
	@missing=$$(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $(PACKAGES) 2>/dev/null | awk '$$1=="installed"{print $$2}' \
	  | sed 's/:.*//' | sort | comm -13 - <(printf '%s\n' $(PACKAGES) | sort)); \
	if [ -n "$$missing" ]; then echo "installing: "$$missing; \
	  as=$$([ $$(id -u) = 0 ] || echo sudo); $$as apt-get update -q && DEBIAN_FRONTEND=noninteractive $$as apt-get install -qy --no-install-recommends $$missing; fi
	@command -v $(CARGO) >/dev/null || { echo "make: no cargo: install Rust 1.89 or newer (rustup, or Debian's cargo and rustc), then run this again" >&2; exit 1; }

programs: setup ## build farhold, farhold-agent, farhold-init and farhold-installer
	$(CARGO) build --release --bins
	RUSTFLAGS="$$RUSTFLAGS -C target-feature=+crt-static" $(CARGO) build --profile image -p init -p installer --target $(HOST) --target-dir $(TARGET)/init
	install -D -t $(TARGET)/$(OWN) $(AGENT) $(INIT)
	install -D $(TARGET)/init/$(HOST)/image/farhold-installer $(TARGET)/release/farhold-installer-$(OWN)

# Programs and images for a processor by its name, whichever this machine has: `make image-arm64`.
OWN := $(if $(filter aarch64-%,$(HOST)),arm64,x86_64)
OTHER := $(if $(filter aarch64-%,$(HOST)),x86_64,arm64)
CROSS_arm64 := aarch64-unknown-linux-gnu aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross
CROSS_x86_64 := x86_64-unknown-linux-gnu x86_64-linux-gnu-gcc gcc-x86-64-linux-gnu libc6-dev-amd64-cross
CROSS := $(firstword $(CROSS_$(OTHER)))
LINKER := CARGO_TARGET_$(shell echo $(CROSS) | tr a-z- A-Z_)_LINKER=$(word 2,$(CROSS_$(OTHER)))
programs-$(OTHER) image-$(OTHER) test-all bench: PACKAGES += $(wordlist 3,9,$(CROSS_$(OTHER)))

# The Rust of this machine if it has the other processor's standard library, or rustup can add it; else Debian 13's,
# which `farhold tools` unpacks into the cache. Nothing foreign is installed.
programs-$(OTHER): programs ## farhold-agent and farhold-init for the other processor, in target/arm64/
	@rustc=rustc; \
	if [ ! -d "$$(rustc --print sysroot)/lib/rustlib/$(CROSS)/lib" ] && ! { command -v rustup >/dev/null && rustup target add $(CROSS); }; then \
	  rustc="$$($(FARHOLD) tools rust)/rustc" || exit 1; fi; \
	export RUSTC="$$rustc" $(LINKER); set -x; \
	$(CARGO) build --release -p agent --bin farhold-agent --target $(CROSS) && \
	RUSTFLAGS="$$RUSTFLAGS -C target-feature=+crt-static" $(CARGO) build --profile image -p init -p installer --target $(CROSS) --target-dir $(TARGET)/init
	install -D -t $(TARGET)/$(OTHER) $(TARGET)/$(CROSS)/release/farhold-agent $(TARGET)/init/$(CROSS)/image/farhold-init
	install -D $(TARGET)/init/$(CROSS)/image/farhold-installer $(TARGET)/release/farhold-installer-$(OTHER)

programs-$(OWN): programs

image-arm64 image-x86_64: image-%: programs-% ## bake the demo image for that processor, in build/edge-minimal-NAME
	@$(MAKE) --no-print-directory $(BUILD)/keys
	$(FARHOLD) lock $(PROFILE) --arch $* --board vm --out $(IMAGE)-$*.lock --store $(TARGET)/$*
	$(FARHOLD) build $(PROFILE) --arch $* --board vm --lock $(IMAGE)-$*.lock --keys $(BUILD)/keys --out $(IMAGE)-$* --store $(TARGET)/$*

$(BUILD)/keys:
	@mkdir -p $(BUILD)
	$(FARHOLD) keys new $@

image: programs ## bake the demo image for the lab
	@$(MAKE) --no-print-directory $(BUILD)/keys
	$(FARHOLD) lock $(PROFILE) --arch x86_64 --board vm --out $(IMAGE).lock $(ARTEFACTS)
	$(FARHOLD) build $(PROFILE) --arch x86_64 --board vm --lock $(IMAGE).lock --keys $(BUILD)/keys --out $(IMAGE) $(ARTEFACTS)

# A pair's image for the lab. With FARHOLD_K3S=/path it has the real k3s, which brings its images along; without, the stand-in
# of the agent's tests, and then the pack is taken without those images.
PAIR := $(BUILD)/two-node-k3s
STAND_IN := $(TARGET)/release/examples/k3s-stand-in
PAIR_PROFILE := $(if $(FARHOLD_K3S),recipes/profiles/two-node-k3s.yaml,$(BUILD)/pair/two-node-k3s.yaml)
pair-image: programs ## bake the image of a pair of nodes, for `farhold lab up build/two-node-k3s --nodes 2 --wait`
	@$(MAKE) --no-print-directory $(BUILD)/keys
	$(if $(FARHOLD_K3S),,$(CARGO) build --release -p agent --example k3s-stand-in)
	rm -rf $(BUILD)/pair; mkdir -p $(BUILD)/pair/packs/k3s; cp recipes/profiles/two-node-k3s.yaml $(BUILD)/pair/
	version=$$(sed -n '/pack: k3s/{n;s/.*version: //p}' recipes/profiles/two-node-k3s.yaml); \
	  cp -r "recipes/packs/k3s/$$version" $(BUILD)/pair/packs/k3s/ && \
	  sed -i '/Digests as nixpkgs/d; /- name: k3s-images/,/^units:/{/^units:/!d}' "$(BUILD)/pair/packs/k3s/$$version/pack.yaml"
	$(FARHOLD) lock $(PAIR_PROFILE) --arch x86_64 --board vm --out $(PAIR).lock $(ARTEFACTS) --artefact k3s=$(or $(FARHOLD_K3S),$(STAND_IN))
	$(FARHOLD) build $(PAIR_PROFILE) --arch x86_64 --board vm --lock $(PAIR).lock --keys $(BUILD)/keys --out $(PAIR) $(ARTEFACTS) --artefact k3s=$(or $(FARHOLD_K3S),$(STAND_IN))

demo: image ## bake an image, boot it under UEFI, show the device's state, update it over a slow link
	$(FARHOLD) lab up $(IMAGE) --dir $(BUILD)/lab --wait
	$(FARHOLD) lab status --dir $(BUILD)/lab
	$(FARHOLD) lab down --dir $(BUILD)/lab
	$(VM_ENV) $(CARGO) run --release -p qemu-tests --example updates

# What the VM tests look at; they take the processor from the image.
VM_ENV = FARHOLD_TEST_IMAGE_DIR=$(CURDIR)/$(IMAGE) FARHOLD_TEST_PAIR_DIR=$(CURDIR)/$(PAIR) FARHOLD=$(CURDIR)/$(FARHOLD) FARHOLD_AGENT=$(CURDIR)/$(AGENT) FARHOLD_INIT=$(CURDIR)/$(INIT)
OTHER_VM_ENV = FARHOLD_TEST_IMAGE_DIR=$(CURDIR)/$(IMAGE)-$(OTHER) FARHOLD=$(CURDIR)/$(FARHOLD) \
  FARHOLD_AGENT=$(CURDIR)/$(TARGET)/$(OTHER)/farhold-agent FARHOLD_INIT=$(CURDIR)/$(TARGET)/$(OTHER)/farhold-init
# What is tried on the other processor too: boots, verity, both slots, updates with trial and rollback, installations, recovery.
OTHER_TESTS := boots_to_running installs_from_a_stick recovery_needs_no_slot updates_over_a_slow_link falls_back_to_the_other_release moves_to_the_other_slot two_builds_are_identical

# The tests of the pair run real servers in network namespaces, those of MQTT a real broker.
test: PACKAGES += postgresql iproute2 util-linux iptables faketime strace e2fsprogs mosquitto openssl
test: image ## all tests that fit in CI
	RUST_TEST_THREADS=4 $(CARGO) test --release --workspace --exclude qemu-tests  # those of the pair mostly wait
	$(VM_ENV) $(CARGO) test --release -p qemu-tests -- --test-threads=1

# The first state whose devices take releases by themselves: such devices must take today's.
FIRST_UPDATES := 52172027c71467df2606308014f3479cbf979c52
OLD := $(BUILD)/first-updates
old-image: ## bake the image of the first state that has updates, with its own programs
	@git cat-file -e $(FIRST_UPDATES)^{commit} || { echo "make: this clone lacks commit $(FIRST_UPDATES): git fetch --unshallow" >&2; exit 1; }
	mkdir -p $(OLD) && git archive $(FIRST_UPDATES) | tar -x -C $(OLD)
	$(MAKE) --no-print-directory -C $(OLD) image

# An earlier state whose agent must make a pair with today's: the nodes of a pair are updated one after the other.
EARLIER := c3f735b13cc70872864edb4d6f4bb3011bcc02ad
EARLIER_AGENT := $(BUILD)/earlier/target/release/farhold-agent
$(EARLIER_AGENT):
	@git cat-file -e $(EARLIER)^{commit} || { echo "make: this clone lacks commit $(EARLIER): git fetch --unshallow" >&2; exit 1; }
	mkdir -p $(BUILD)/earlier && git archive $(EARLIER) | tar -x -C $(BUILD)/earlier
	cd $(BUILD)/earlier && CARGO_TARGET_DIR=target $(CARGO) build --release -p agent --bin farhold-agent

test-all: test old-image pair-image $(EARLIER_AGENT) ## and the ones that take longer
	$(CARGO) test --release -p image-builder -- --ignored
	$(CARGO) test --release -p agent --lib -- --ignored --nocapture
	$(CARGO) test --release -p agent --bin farhold-agent -- --ignored --nocapture a_thousand_devices
	FARHOLD_OLD_AGENT=$(CURDIR)/$(EARLIER_AGENT) $(CARGO) test --release -p agent --test ha_site versions -- --ignored --nocapture
	$(CARGO) test --release -p agent --test ha_site every_subset -- --ignored --nocapture
	$(CARGO) test --release -p agent --test ha_site campaign -- --ignored --nocapture
	$(VM_ENV) FARHOLD_OLD_IMAGE_DIR=$(CURDIR)/$(OLD)/build/edge-minimal $(CARGO) test --release -p qemu-tests --features long -- --test-threads=1
	@$(MAKE) --no-print-directory image-$(OTHER)
	time $(OTHER_VM_ENV) $(CARGO) test --release -p qemu-tests --features long $(OTHER_TESTS:%=--test %) -- --test-threads=1

bench: PACKAGES += bmap-tools curl iproute2 util-linux rauc squashfs-tools nginx-light openssl swupdate cpio
bench: programs-x86_64 programs-arm64 image ## farhold beside its peers, with ratios
	$(CARGO) bench -p image-builder --bench flash
	$(CARGO) bench -p image-builder --bench bake
	$(CARGO) bench -p image-builder --bench delta
	$(VM_ENV) $(CARGO) test --release -p qemu-tests --test beside_rauc -- --ignored --nocapture
	$(VM_ENV) $(CARGO) test --release -p qemu-tests --test bad_links --test links_beside_peers bench -- --ignored --nocapture --test-threads=1
	$(CARGO) test --release -p agent --test ha_site bench -- --ignored --nocapture --test-threads=1

check: ## formatting, lints, licences and advisories
	$(CARGO) fmt --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check

clean: ## remove what was built here (the cache outside the tree stays)
	rm -rf $(BUILD) $(TARGET)
