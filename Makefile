# demo, test, bench, lint: each sets up what it needs and skips what is done. The data folder is GEOM_DATA, see DESIGN.md.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

# the libraries open3d opens a window or an offscreen picture with
SYSTEM := libusb-1.0-0 libgl1 libegl1 libgomp1 libx11-6 libvulkan1 mesa-vulkan-drivers
APT := apt-get install -y --no-install-recommends

.PHONY: help demo test bench lint venv system warmup clean

help:
	@echo "make demo | test | bench | lint | venv | clean"

demo: venv system warmup
	$(BIN)/geom demo --out out/demo

# a process on each core; to debug, call pytest without -n
test: venv system warmup
	$(BIN)/python -m pytest -n auto --dist worksteal

bench: .venv/bench-installed system warmup
	$(BIN)/python -m benchmarks registration-local
	$(BIN)/python -m benchmarks rotations
	$(BIN)/python -m benchmarks points
	$(BIN)/python -m benchmarks sampling
	$(BIN)/python -m benchmarks serialization
	$(BIN)/python -m benchmarks scan
	$(BIN)/python -m benchmarks meshes
	$(BIN)/python -m benchmarks rods
	$(BIN)/python -m benchmarks skinning
	$(BIN)/python -m benchmarks clifford

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

venv: .venv/installed

# a stamp each: pip runs again only when the requirements changed
.venv/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[all,test]'
	@touch $@

.venv/bench-installed: .venv/installed
	$(PIP) -e '.[all,test,bench]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv

# without root or without a network it says what to run, and goes on: only windows and pictures need these
system:
	@command -v dpkg-query >/dev/null || exit 0; \
	missing=; for package in $(SYSTEM); do \
	  dpkg-query -W -f='$${Status}\n' $$package 2>/dev/null | grep -q ' installed$$' || missing="$$missing $$package"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update && DEBIAN_FRONTEND=noninteractive $(APT) $$missing && exit 0; \
	fi; \
	echo "open3d needs system libraries that are not here; to install them: sudo $(APT)$$missing"

# compile the kernels now, once, instead of in the first call
warmup: venv
	$(BIN)/geom warmup

clean:
	rm -rf .venv out build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
