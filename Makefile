# The two commands of the README, and what keeps them working. Each builds .venv from nothing with the stock python3, in the versions of
# constraints.txt, and with no more than it needs; later runs reuse it. PyTorch is the one for the CPU unless TORCH says otherwise.
PYTHON ?= python3
TORCH ?=
PYTEST = -m pytest -n auto --maxprocesses 4 --durations 15 # each worker holds a PyTorch: about 1 GB
.PHONY: demo test check release lock floor canary again
.NOTPARALLEL:

demo: .venv/headless
	.venv/bin/python -m cidm_ops demo demo

test: .venv/test
	.venv/bin/python $(PYTEST)

check: .venv/dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	.venv/bin/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml

# What keeps this version from being published; the nodes are asked of every ComfyUI that is found.
release: | .venv/bin/python
	.venv/bin/python .ci/release.py $(TAG)

INSTALL = .ci/install.py --torch '$(TORCH)'
LOCK = pyproject.toml constraints.txt .ci/install.py .ci/lock.py $(if $(TORCH),again) | .venv/bin/python

.venv/headless: $(LOCK)
	.venv/bin/python $(INSTALL) headless
	touch $@

.venv/test: $(LOCK)
	.venv/bin/python $(INSTALL) headless,cluster,test
	touch .venv/headless $@

.venv/dev: $(LOCK)
	.venv/bin/python $(INSTALL) headless,dev
	touch .venv/headless $@

.venv/bin/python .venv-lowest/bin/python .venv-newest/bin/python:
	$(PYTHON) -m venv $(@D)/..

# Renews the lock for what pyproject.toml asks: pins that still fit stay, with UPGRADE=1 all become the newest. uv is only the maker's tool.
lock: | .venv/bin/python
	.venv/bin/python -m pip install --quiet uv
	.venv/bin/python -m uv pip compile pyproject.toml --universal --python-version 3.10 --all-extras --no-annotate --quiet \
	    --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) --output-file constraints.txt

# The suite with the lowest versions that pyproject.toml allows.
floor: | .venv-lowest/bin/python
	.venv-lowest/bin/python $(INSTALL) --versions lowest headless,cluster,test
	.venv-lowest/bin/python $(PYTEST)

# The suite with the newest of everything, and which packages moved since the lock was made.
canary:
	rm -rf .venv-newest
	$(MAKE) .venv-newest/bin/python
	.venv-newest/bin/python $(INSTALL) --versions newest headless,cluster,test
	.venv-newest/bin/python $(PYTEST); failed=$$?; .venv-newest/bin/python .ci/moved.py; exit $$failed
