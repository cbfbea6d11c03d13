# What people type, and exactly what CI runs.
#
# Everything that is not the source lands in .tools, target and functions/examples/*/build, which git ignores.

export PATH := $(CURDIR)/.tools/bin:$(PATH)

.PHONY: setup build guests demo test check fuzz lint advisories sbom bench eval clean

setup: ## tools for the guests and the tests, into .tools
	deploy/setup.sh

build: ## the nerve binary: target/release/nerve
	cargo build --release --locked -p nerve-cli

guests: setup ## the example functions that are compiled
	deploy/guests.sh

demo: ## real GitHub webhooks through functions, and what comes out
	deploy/demo.sh

test: setup guests ## every test
	deploy/test.sh

SEEDS ?= 200
FROM ?= 1
check: setup ## random steps from so many seeds: nothing is lost, doubled, mixed, foreign or out of sight (tests/README.md)
	cargo build --release --locked --workspace --all-targets
	CHECK_SEEDS=$(SEEDS) CHECK_FROM=$(FROM) cargo test --release --locked --workspace --test it check:: -- --nocapture

SECONDS ?= 3600
TARGET ?=
fuzz: ## every fuzz target for so long, one after another, or the one that TARGET names (tests/fuzz/README.md)
	deploy/setup.sh fuzz
	deploy/fuzz.sh run $(SECONDS) $(TARGET)

lint: ## formatting, spelling, unused crates, licenses and sources (deny.toml), clippy and rustdoc with warnings denied
	deploy/setup.sh lint
	cargo fmt --all --check
	typos
	cargo shear
	cargo deny --locked check licenses bans sources
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --release --locked --workspace --no-deps

advisories: ## known vulnerabilities of the crates, from a database on the network
	deploy/setup.sh lint
	cargo deny --locked check advisories

sbom: ## what is in the binary and what ships beside it, as CycloneDX: target/sbom/nerve.cdx.json
	deploy/setup.sh sbom nats onnxruntime
	deploy/sbom.sh

bench: setup ## ratios: Nerve against what it is built on, and against embedding servers in Python
	deploy/setup.sh peers
	cargo build --release --locked -p nerve-cli
	cargo run --release --locked -p nerve-tests --bin bench

eval: ## 30 questions to PostgreSQL's manual of 1,170 pages, measured (some minutes)
	deploy/eval.sh

clean: ## everything that was built or installed
	cargo clean
	rm -rf .tools .nerve .nerve-eval tests/node/node_modules functions/examples/*/build
