# Python 3.11 or newer and make are all that is needed; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin

# Nothing is installed but files whose hashes stand in constraints*.txt, and nothing is built that was fetched.
PINNED := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
	--only-binary :all:

.PHONY: install demo docs test test-oldest check audit wheel sbom pins clean

install: .venv/installed

demo: .venv/installed
	$(BIN)/fewstep demo

# The documentation site, into site/, with the page of commands written anew.
docs: .venv/installed
	$(BIN)/python tools/commands_page.py
	$(BIN)/mkdocs build --quiet

# Two workers of one thread each: on two cores sooner done than one worker of two, and as exact.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# Loads, paints, exports and loads again with the oldest versions that pyproject.toml allows.
test-oldest: .venv-oldest/installed
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest tests/models/test_versions.py

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

.venv/installed: pyproject.toml constraints.txt constraints-cuda.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fewstep needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	@# A build of torch that lies on this disk goes before the index's: pip would take what has its hash in an index.
	sed -n '/^torch==/,/[^\\]$$/p' constraints.txt > .venv/torch.txt
	$(PINNED) --no-index --requirement .venv/torch.txt 2>/dev/null || \
		echo "torch: no build with a pinned hash lies on this disk; taking the one of the index"
	$(PINNED) --requirement constraints.txt
	if $(BIN)/python -m pip show torch | grep -q '^Requires:.*nvidia'; then \
		$(PINNED) --requirement constraints-cuda.txt; fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $@

# Which pins have known vulnerabilities, by a database on this disk: make audit ADVISORIES=FOLDER
audit: .venv/installed
	$(BIN)/python tools/audit.py $(ADVISORIES)

# The wheel and the source of a release, into dist/.
wheel: .venv/installed
	$(BIN)/python -m build --no-isolation --outdir dist

# What a release is made of, in CycloneDX's JSON.
sbom: .venv/installed
	$(BIN)/python tools/sbom.py dist/sbom.cdx.json

# Resolves the pins anew and keeps those that still fit: make pins UPGRADE='--upgrade-package torch' WHEELS=FILE
pins: .venv/installed
	mkdir -p build
	cat constraints.txt constraints-cuda.txt > build/pins.txt
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
	build/uv/bin/uv pip compile --quiet --no-header --no-annotate --universal --generate-hashes --python-version 3.11 \
		--extra dev $(UPGRADE) --output-file build/pins.txt pyproject.toml
	$(BIN)/python tools/pins.py build/pins.txt $(WHEELS)

.venv-oldest/installed: pyproject.toml constraints.txt tests/oldest.py
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) tests/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint .venv-oldest/constraints.txt --editable . pytest
	touch $@

clean:
	rm -rf .venv .venv-oldest build dist site
