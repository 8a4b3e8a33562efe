# Each target is a few plain commands; README.md gives the same ones for Windows and for a machine without make.
# A step runs again only when something it needs is newer, so neither `make run` nor `make test` needs a network twice.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lab store lint
.DELETE_ON_ERROR:

# Run every notebook from top to bottom and write the pages of the course into _build/.
run: .venv/course
	$(BIN)/lora-lab fetch
	$(BIN)/lora-lab run

# Run the tests of the package and of every notebook.
test: .venv/test
	$(BIN)/lora-lab fetch
	$(BIN)/python -m pytest

# Open the course.
lab: .venv/course
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

# Run every notebook and keep its outputs in it, and the figures that the README borrows.
store: .venv/course
	$(BIN)/lora-lab fetch
	$(BIN)/lora-lab run --store
	$(BIN)/python -m lora_lab.course.readme_figures

# Check style and types.
lint: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

.venv/pyvenv.cfg:
	@$(PYTHON) -c "import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit('LoRA Lab takes Python 3.11, 3.12 or 3.13; $(PYTHON) is ' + sys.version.split()[0] + '. Choose another: make PYTHON=python3.11')"
	$(PYTHON) -m venv .venv

.venv/course: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e .
	touch $@

.venv/test: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt -e ".[test]"
	touch .venv/course $@
