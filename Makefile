# Every target installs what it needs into .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Packages that belong to torch's build; nvidia-ml-py does not, DVCLive reads the GPU's load with it.
TORCH_PACKAGES := torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: install demo test test-fast test-slurm lint format bench bench-baseline baseline lock
.DEFAULT_GOAL := demo

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
ifdef SKIP_TORCH
	# A lock entry is one line and its continuations; drop the entries of torch's build.
	awk '!more { drop = /^($(TORCH_PACKAGES))==/ && !/^nvidia-ml-py==/ } { more = /\\$$/ } !drop' requirements.lock > .venv/requirements.txt
	$(BIN)/python -c "import torch, torchvision"
else
	cp requirements.lock .venv/requirements.txt
endif
	# The lock is complete, so that pip need not resolve anything.
	$(BIN)/pip install --no-deps --require-hashes -r .venv/requirements.txt
	$(BIN)/pip install --no-deps --no-build-isolation -e .
	touch $@

demo: $(STAMP)
	snakemake --profile demo
	u2pl show table2
	@echo "All tables: results/demo/tables/ (.md, .csv, .tex); every number: results/demo/cells.csv"

lint: $(STAMP)
	ruff check .
	ruff format --check .
	mypy u2pl
	snakefmt --check Snakefile workflow

test: lint
	pytest -n 2 --dist loadfile # a file's fixtures are expensive: one worker makes them

# What needs neither Snakemake, DVC, Chromium, LaTeX, a whole scale nor kills, in under two minutes.
test-fast: lint
	pytest -n 2 --dist loadfile -m "not slurm and not slow"

# As root: installs Debian's SLURM if it is missing, starts a cluster on loopback addresses, and stops it again.
test-slurm: $(STAMP)
	pytest tests/slurm -m slurm -v -rs --durations=0

format: $(STAMP)
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

bench: $(STAMP)
	pytest tests/benchmarks --benchmark-only

# What `make bench` compares with: renewed on purpose only, on an idle machine.
bench-baseline: $(STAMP)
	pytest tests/benchmarks --benchmark-only --renew

# What `make test` compares with: renewed on purpose only, after reading what moved. Snakemake does not see code.
baseline: $(STAMP)
	snakemake --profile demo --forceall baseline_runs --config scale=check
	u2pl baseline --scale check

# The index and the local links of whoever locks must not end up in the file: hashes are enough.
lock: $(STAMP)
	pip-compile --quiet --generate-hashes --strip-extras --no-header --no-annotate --no-emit-index-url \
		--no-emit-find-links --no-emit-trusted-host --extra dev --allow-unsafe -o requirements.lock pyproject.toml
