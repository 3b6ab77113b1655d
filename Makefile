.DEFAULT_GOAL := help
.PHONY: help demo demo-cluster test test-faults bench lint clean
POSTERN := $(or $(CARGO_TARGET_DIR),target)/debug/postern

help: ## say what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 20

demo: ## build the gateway and its plugins and serve the visitor-approvals demo
	@scripts/setup demo
	cargo build --workspace
	$(POSTERN) plugin build plugins/* --out target/components
	$(POSTERN) serve --demo --tenants examples/tenants --data target/demo-data

demo-cluster: ## the same with two gateways on one Redis behind nginx, and a page that shows them
	@scripts/setup cluster
	cargo build --workspace
	$(POSTERN) plugin build plugins/* --out target/components
	POSTERN=$(POSTERN) scripts/demo-cluster

test: ## run every test, against a real Redis and with real clients
	@scripts/setup test
	cargo test --workspace --no-fail-fast

test-faults: ## break Redis and gateways under 500 clients and check what they saw; see gateway/FAULTS.md
	@scripts/setup test
	cargo test --workspace --test faults -- --run

bench: ## measure; uses the release profile
	@scripts/setup demo
	cargo bench --workspace

lint: ## check format and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

clean: ## remove everything that was built or installed here
	cargo clean
	rm -rf gateway/tests/clients/node_modules examples/plugins/*/node_modules examples/plugins/*/target
