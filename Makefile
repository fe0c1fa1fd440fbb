# Every command makes what it needs: a Python (3.10 to 3.13) and make are enough to begin with.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
# Test processes, each with one torch thread.
WORKERS ?= 2
# Handed on: make experiment ARGS='--seeds 1 --steps 50', make test ARGS='tests/sampling -x'.
ARGS ?=

RUN = $(VENV)/bin/python
PIP = $(RUN) -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
READY = $(VENV)/.ready

.PHONY: install quickstart test experiment test-oldest test-versions lint docs clean

install: $(READY)

$(READY): pyproject.toml $(CONSTRAINTS)
	@echo 'Installing into $(VENV); torch makes it large, so this takes some minutes the first time'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[dev]'
	touch $@

quickstart: $(READY)
	$(RUN) examples/quickstart.py $(ARGS)

test: $(READY)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN) -m pytest -q -n $(WORKERS) --dist loadfile --durations=20 $(ARGS)

experiment: $(READY)
	$(RUN) examples/experiment.py $(ARGS)

# The oldest versions that pyproject.toml admits.
test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

# Python 3.10 to 3.13, as far as they are here (ARGS=3.12: that one); the table goes into docs/results/versions.md.
test-versions:
	$(PYTHON) .ci/versions.py $(ARGS)

lint: $(READY)
	$(RUN) -m ruff check .

docs: $(READY)
	$(PIP) -e '.[docs]'
	$(RUN) -m sphinx -q -W --keep-going -b html docs build/docs

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
