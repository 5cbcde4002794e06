# The same few targets for people and for CI. Everything is installed into .venv, once.
SHELL := /bin/bash
PYTHON := $(shell command -v python3.11 || command -v python3)
RUN := .venv/bin/python
SAMPLE := multimodal/demo/sample
export HF_HUB_OFFLINE ?= 1

.PHONY: help demo test test-browser test-space app lint bench train-demo eval-demo constraints clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/:/'

.venv/.installed: pyproject.toml constraints.txt
	"$(PYTHON)" -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	test -x $(RUN) || "$(PYTHON)" -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/.installed  ## read the sample study with its report; results in out/
	$(RUN) -m pipelines.cli read $(SAMPLE)/study --report $(SAMPLE)/report.txt \
	  --ask "What does this study show?" --out out

test: .venv/.installed-dev  ## every test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

test-space: .venv/.installed-dev  ## the Space from its own requirements in a fresh environment (downloads torch)
	CROSSREAD_TEST_SPACE=1 $(RUN) -m pytest tests/pipelines/test_space.py

test-browser: .venv/.installed-dev  ## only those that drive Chromium (apt-get install chromium)
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests/browser

app: .venv/.installed  ## the page, on 127.0.0.1:7860
	$(RUN) app.py

lint: .venv/.installed-dev  ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: .venv/.installed-dev  ## the project's measurements; each prints JSON
	$(RUN) -m benchmarks.sparse
	$(RUN) -m benchmarks.serving

train-demo: .venv/.installed  ## the demo checkpoint from nothing (docs/training.md)
	$(RUN) -m multimodal.training.recipe

eval-demo: .venv/.installed  ## measure the demo checkpoint and write its model card
	$(RUN) -m multimodal.training.evaluation

constraints:  ## record the installed versions
	(echo '# Exact versions of everything, as tested; made by `make constraints` on Linux, Python 3.11.'; \
	  $(RUN) -m pip freeze --exclude-editable --exclude pip --exclude setuptools) > constraints.txt

clean:  ## remove what make made
	rm -rf .venv out build ./*.egg-info
