# Every target runs in the environment .venv, which is made when it is missing or older than what it is made from.
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
READY := $(VENV)/.ready
RUN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-ray audit lint bench peers clean

help:  ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	@touch $(READY)

.venv: $(READY)  ## make the environment

demo: $(READY)  ## train a CNN across ten virtual organisations under differential privacy
	$(RUN)/discreet simulate simulations/scenarios/digits.toml

test: $(READY) lint  ## lint, then run the tests (under 10 minutes on two cores)
	$(RUN)/python -m pytest

test-slow: $(READY)  ## the tests that take minutes: accuracy of the shipped scenarios, lies and outages of a deployment
	$(RUN)/python -m pytest -m slow -n 0

test-ray: .venv-ray/.ready  ## the tests on a real Ray, in an environment of their own with the extra
	.venv-ray/bin/python -m pytest tests/test_ray.py -m 'slow or not slow' -n 0

.venv-ray/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-ray
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,ray]' \
		--constraint constraints.txt
	@touch $@

audit: $(READY)  ## plant bugs and see each caught, and clean runs left alone; kill clients at 200 random instructions
	notes=$$(mktemp -d); PLANTED_BUGS_NOTES=$$notes $(RUN)/python -m pytest -m audit -q -raP; status=$$?; \
		$(RUN)/python tests/planted_bugs.py --table $$notes; rm -r $$notes; exit $$status

lint: $(READY)  ## ruff, mypy strict, the directions between the rooms, and the Dockerfile
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	test ! -x $(RUN)/hadolint || $(RUN)/hadolint Dockerfile

bench: $(READY)  ## time the hot path: what a simulation reaches of the bare training loop
	$(RUN)/discreet bench

peers: $(PEERS)/.ready  ## make the environment of `discreet bench peers`: Flower on Ray, Opacus, pfl

$(PEERS)/.ready: simulations/bench/peers/requirements.txt simulations/bench/peers/constraints.txt
	$(PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement simulations/bench/peers/requirements.txt --constraint simulations/bench/peers/constraints.txt
	@touch $(PEERS)/.ready

clean:  ## remove the environments and the caches
	rm -rf $(VENV) .venv-ray $(PEERS) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
