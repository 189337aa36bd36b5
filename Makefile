# Every verb of the project; `make help` lists them. Continuous integration calls `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# Any interpreter from 3.11 on, for example: make test PYTHON=python3.12
PYTHON ?= python3
PYTEST_FLAGS :=

# Tests that drive browsers, services or Ray, or measure how long something takes: one at a time. All others run in
# two processes, each file in one of them.
ALONE := $(addprefix tests/,browser chaos e2e contracts/test_pools.py contracts/test_pool_kinds.py) \
	$(addprefix tests/unit/,timing search/test_lease.py search/test_worker_shares.py store/test_patience.py)

# What depends on the processor runs twice: as it is, and with the features of AVX2 alone, as before VNNI. These are
# workers.device.processor.AVX2_ALONE.
AVX2_ALONE := AUTOTUNE_CPU_FEATURES=avx2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 \
	FBGEMM_ENABLE_INSTRUCTIONS=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
ON_EVERY_PROCESSOR := $(addprefix tests/,contracts/test_backends.py contracts/test_cpu_kernels.py \
	contracts/test_exporters.py) $(addprefix tests/unit/,backends calibration/test_smoothing.py \
	device/test_processor.py exporters/test_onnx.py exporters/test_torchao.py maps/test_map_file.py \
	model/test_prepared.py sensitivity)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# Where the demo records and the dashboard looks; `autotune --database` takes the same.
DATABASE := sqlite:///demo/autotune.db
demo dashboard: export AUTOTUNE_DATABASE := $(DATABASE)

# $(call system_package,NAME,WHY) installs a Debian package if it may, else says what to do.
define system_package
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		echo "Installing $(1) with apt-get ..."
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(1) >/dev/null
	else
		echo "$(2) On Debian or Ubuntu: sudo apt-get install $(1)" >&2
		exit 1
	fi
endef

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: install
install: $(VENV)/.installed-test ## Make .venv with everything that development needs

.PHONY: demo
demo: $(VENV)/.installed-demo ## Tune all-MiniLM-L6-v2 here; print the front, export a map, verify it
	@mkdir -p demo
	$(BIN)/autotune run examples/minilm.yaml
	$(BIN)/autotune export last --output demo/map.json
	$(BIN)/autotune verify demo/map.json
	echo "See the front in your browser: make dashboard"

.PHONY: dashboard
dashboard: $(VENV)/.installed-demo ## Open the dashboard on the demo's database
	@$(BIN)/autotune dashboard

.PHONY: check
check: $(VENV)/.installed-test ## Lint, check formatting, types and the direction of imports
	@echo "Checking style, types and imports ..."
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --no-error-summary
	# Its cache once called a broken contract kept.
	$(BIN)/lint-imports --no-logo --no-cache

.PHONY: test
test: check chromium $(VENV)/.installed-vision ## Run every check and every test
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --cov --cov-report= $(PYTEST_FLAGS) $(ALONE:%=--ignore=%)
	$(BIN)/coverage report --format=total | sed 's/.*/Coverage of lines: & %/'
	$(AVX2_ALONE) OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(PYTEST_FLAGS) $(ON_EVERY_PROCESSOR)
	$(BIN)/pytest $(PYTEST_FLAGS) $(ALONE)
	PYTHONPATH=$(VENV)/vision $(BIN)/pytest $(PYTEST_FLAGS) tests/vision

.PHONY: test-gpu
test-gpu: $(VENV)/.installed-test ## Run the tests that need a GPU; device, versions and counts go to docs/gpu-tests.json
	@$(BIN)/python tests/record_gpu.py docs/gpu-tests.json $(PYTEST_FLAGS)

.PHONY: screenshots
screenshots: $(VENV)/.installed-test chromium ## Take the pictures in docs/images again; that of the demo needs make demo
	@$(BIN)/python tests/browser/screenshots.py docs/images
	if [ -e demo/autotune.db ]; then $(BIN)/python tests/browser/screenshots.py docs/images sqlite:///$(CURDIR)/demo/autotune.db; fi

.PHONY: chaos
chaos: $(VENV)/.installed-test ## Kill everything the service is made of, for hours
	@AUTOTUNE_CHAOS=long $(BIN)/pytest -s tests/chaos

.PHONY: bench
bench: $(VENV)/.installed-test ## Run every benchmark; results go to benchmarks/results
	@for script in benchmarks/*.py benchmarks/search/{ask,estimators,compare}.py benchmarks/service/overhead.py; do
		echo "== $$script"
		$(BIN)/python "$$script"
	done

.PHONY: lock
lock: ## Write constraints.txt again; a line deleted from it beforehand gets the newest version
	@scratch=$$(mktemp -d)
	trap 'rm -rf "$$scratch"' EXIT
	echo "Resolving in a fresh environment; this takes minutes ..."
	$(PYTHON) -m venv "$$scratch"
	pip() { "$$scratch/bin/python" -m pip --disable-pip-version-check -qq "$$@"; }
	pip install -c constraints.txt -e '.[export,openvino,tasks,vision,test]'
	{
		echo "# Exact versions of everything that .[export,openvino,tasks,vision,test] installs; written by: make lock"
		# A local version such as +cpu names one build; the constraint must fit all of them.
		pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' | LC_ALL=C sort -f
	} > "$$scratch/constraints.txt"
	mv "$$scratch/constraints.txt" constraints.txt

.PHONY: secrets
secrets: secrets/postgres_password secrets/ray_token ## Make the passwords that docker-compose.yml mounts

# Compose mounts the files with their mode on the host, and every container reads them as its own
# user; so the folder keeps others out, not the files.
secrets/%:
	@install -d -m 0700 secrets
	umask 0333
	$(PYTHON) -c 'import secrets; print(secrets.token_hex(32), end="")' > $@
	echo "Made $@"

.PHONY: clean
clean: ## Remove caches and build outputs; .venv and databases stay
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed, but there is no $(PYTHON); name one with PYTHON=" >&2; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
		echo "Python 3.11 or newer is needed, but $(PYTHON) is $$($(PYTHON) -V); name another one with PYTHON=" >&2
		exit 1
	}
	echo "Making $(VENV) ..."
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(call system_package,python3-venv,$(PYTHON) has no venv module.); }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing quant-autotune into $(VENV); the first time takes minutes ..."
	$(PIP) install -c constraints.txt -e '.[tasks]'
	touch $@

# In a folder beside the packages, which only tests/vision sees: transformers imports torchvision wherever it is, and
# fails if that was built for a PyTorch of another index.
$(VENV)/.installed-vision: $(VENV)/.installed-test
	@$(PIP) install -c constraints.txt --no-deps --upgrade --target $(VENV)/vision timm torchvision
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing quant-autotune and its test tools into $(VENV); the first time takes minutes ..."
	$(PIP) install -c constraints.txt -e '.[export,openvino,tasks,test]'
	touch $(VENV)/.installed-demo $@

.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || { $(call system_package,chromium,The browser tests need Chromium.); }
