# Every command makes what it needs; a Python (3.10 to 3.13) and make are enough to begin with.
PYTHON ?= python3
VENV ?= .venv
# Test processes; each runs torch with one thread.
WORKERS ?= 2
# What `make experiment` hands on, for example ARGS='--seeds 1 --steps 50'.
ARGS ?=

PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
PYTEST = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(1)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile --durations=20
READY = $(VENV)/.ready

.PHONY: install quickstart test experiment test-oldest test-versions lint docs clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo 'Installing into $(VENV): about 5 GB with torch, some minutes the first time'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(READY)
	$(VENV)/bin/python examples/quickstart.py $(ARGS)

test: $(READY)
	$(call PYTEST,$(VENV))

experiment: $(READY)
	$(VENV)/bin/python examples/experiment.py $(ARGS)

lint: $(READY)
	$(VENV)/bin/python -m ruff check .

docs: $(READY)
	$(PIP) -c constraints.txt -e '.[docs]'
	$(VENV)/bin/python -m sphinx -q -W -b html docs build/docs

# The oldest versions that pyproject.toml admits.
test-oldest: .venv-oldest/.ready
	$(call PYTEST,.venv-oldest)

.venv-oldest/.ready: pyproject.toml constraints-oldest.txt
	$(MAKE) VENV=.venv-oldest install-oldest
	touch $@

.PHONY: install-oldest
install-oldest:
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints-oldest.txt -e '.[test]'

clean:
	rm -rf .venv .venv-oldest .venv-3.* build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
