# The two commands of the README. Each builds .venv from nothing with the stock python3; later runs reuse it.
PYTHON ?= python3
.PHONY: demo test check

demo: .venv/ready
	.venv/bin/python -m cidm_ops demo demo

test: .venv/ready
	.venv/bin/python -m pytest

check: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# A PyTorch that the machine itself offers (pip's find-links) is taken first: the index's one for Linux brings several GB of CUDA.
.venv/ready: pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -c 'import torch' 2>/dev/null || .venv/bin/python -m pip install --no-index --no-deps 'torch>=2.6' 2>/dev/null || true
	.venv/bin/python -m pip install -e '.[headless,test,dev]'
	touch $@
