# Everything a person runs. Each target first brings .venv up to date (a no-op when nothing changed).

# The first Python 3.11, 3.12 or 3.13 on the PATH; `make PYTHON=/path/to/python3.12 ...` overrides it.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && command -v $$p && break; done)
VENV_PYTHON := .venv/bin/python
CONFIG ?= configs/shapes.yaml
# Extra arguments for pytest or for a job, e.g. `make test ARGS=tests/unit`.
ARGS ?=
# Of pytest; more of them overlap more of the waiting, and take more memory.
PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo try test test-fast proofs bench-labelling bench-rewards bench-guard bench-ppo bench-families bench-memory bench-scale bench-gpu gpu-smoke lint format lock check-pythons audit-deps sbom soak docs screenshots release pretrain-shapes clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## create or update .venv from requirements/cpu.lock
	@python="$(PYTHON)"; if [ -z "$$python" ]; then \
		echo "Python 3.11, 3.12 or 3.13 was not found: install one, or call make PYTHON=/path/to/python3.11." >&2; exit 2; fi; \
	"$$python" scripts/set_up.py

demo: setup ## run the whole loop on the embedded world and write runs/shapes/report.html
	$(VENV_PYTHON) -m jobs.pipeline --config $(CONFIG) $(ARGS)

try: setup ## run the whole loop in about three minutes, with figures that are a taste
	$(VENV_PYTHON) -m jobs.demo runs/try --quick $(ARGS)

# Several processes, a file of tests each: engines and Ray start on one core and wait a lot.
test: setup ## run all tests but the proofs
	$(VENV_PYTHON) -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: setup ## run the tests that start neither Ray nor vLLM
	$(VENV_PYTHON) -m pytest --ignore tests/integration --ignore tests/proofs -m "not slow" $(ARGS)

proofs: setup ## run the proofs that take many minutes
	$(VENV_PYTHON) -m pytest -m proof -s --ignore tests/unit --ignore tests/integration $(ARGS)

bench-labelling: setup ## measure the speed of labelling, e.g. with ARGS="--only extract" or ARGS=--quick
	$(VENV_PYTHON) -m benchmarks.labelling $(ARGS)

bench-rewards: setup ## measure the reward service against bare models (ARGS=--quick is short)
	$(VENV_PYTHON) -m benchmarks.rewards $(ARGS)

bench-guard: setup ## measure what the guard's modes do to a finished run's answers (ARGS="--run runs/shapes --quick" is short)
	$(VENV_PYTHON) -m benchmarks.guard $(ARGS)

bench-ppo: setup ## measure PPO against bare vLLM, torch and TRL, e.g. with ARGS="--only rollout" or ARGS=--quick
	$(VENV_PYTHON) -m benchmarks.ppo $(ARGS)

bench-families: setup ## measure learner and rollouts of many families against bare torch and vLLM (ARGS=--quick is short)
	$(VENV_PYTHON) -m benchmarks.families $(ARGS)

bench-memory: setup ## measure the memory of all processes while images travel (ARGS="--steps 10" is short)
	$(VENV_PYTHON) -m benchmarks.host_memory $(ARGS)

bench-scale: setup ## measure how labelling grows with local nodes (ARGS="--nodes 2 --blocks 4" is short)
	$(VENV_PYTHON) -m benchmarks.scale $(ARGS)

soak: setup ## an hour of service and an hour of labelling: memory, descriptors, threads and disk (ARGS="--minutes 2" is short)
	$(VENV_PYTHON) -m benchmarks.soak $(ARGS)

bench-gpu: setup ## measure PPO update and reward scoring of a 7B shape on a GPU (ARGS="--size tiny" runs anywhere)
	$(VENV_PYTHON) -m benchmarks.gpu $(ARGS)

gpu-smoke: setup ## check in five minutes that all of it runs on this machine's GPU (runs without one too, in small)
	$(VENV_PYTHON) -m benchmarks.gpu_smoke $(ARGS)

lint: setup ## check style, format and types
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

format: setup ## format the code and fix what ruff can fix
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

lock: ## write requirements/cpu.lock from what is installed in .venv (reads hashes from the package index)
	$(VENV_PYTHON) -m scripts.lock

check-pythons: setup ## check that both locks resolve, cpu.lock for Python 3.11, 3.12 and 3.13 (reads the package index)
	$(VENV_PYTHON) -m scripts.check_pythons

audit-deps: setup ## list advisories on the packages of both locks (asks the package index, or ARGS="--database FOLDER")
	$(VENV_PYTHON) -m scripts.audit_deps $(ARGS)

sbom: setup ## write dist/sbom-cpu.cdx.json and dist/sbom-gpu.cdx.json: what each lock installs, as CycloneDX
	$(VENV_PYTHON) -m scripts.sbom $(ARGS)

docs: setup ## build the documentation into site/, strictly: a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build $(ARGS)

screenshots: setup ## take the pictures of docs/images/ again, of the demo's report if there is one (needs Chromium)
	ARTIFACTS=docs/images REPORT=$(wildcard runs/shapes/report.html) $(VENV_PYTHON) -m pytest -rs tests/unit/docs/test_screenshots.py $(ARGS)

release: setup ## check and build the version that the code says, e.g. VERSION=0.2.0, with ARGS=--tag to tag it
	$(VENV_PYTHON) -m scripts.release $(VERSION) $(ARGS)

pretrain-shapes: setup ## train the three small models of the embedded world from nothing
	$(VENV_PYTHON) -m jobs.pretrain_shapes $(ARGS)

clean: ## remove caches and build leftovers (.venv and runs/ stay)
	rm -rf build dist site *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
