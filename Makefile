# make demo   the quickstart scenario on the embedded cluster, with its report under runs/
# make test   lint, types and tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test install clean

demo: $(VENV)/servecert.installed
	$(BIN)/servecert run scenarios/catalog/quickstart.yaml

test: $(VENV)/tox.installed
	$(BIN)/tox

install: $(VENV)/servecert.installed

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/servecert.installed: pyproject.toml | $(BIN)/python
	$(PIP) install --no-compile -e .
	@touch $@

$(VENV)/tox.installed: | $(BIN)/python
	$(PIP) install 'tox>=4.20'
	@touch $@

clean:
	rm -rf $(VENV) .tox .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
