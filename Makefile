# Every target works from a fresh checkout: the environment is made, or brought up to date, first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench docs

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with the package, its extras and the tools

demo: setup ## tilt the image prior towards one class; the page is runs/demo/report.html
	$(BIN)/difftilt train fashion --out runs/demo $(ARGS)

test: setup ## run the whole suite (ARGS="-k rtb" runs a part)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --durations 10 $(ARGS)

check: setup ## lint, formatting, types and the import contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: setup ## every method on every problem with a known answer
	$(BIN)/difftilt bench exact $(ARGS)

docs: setup ## build the site into site/
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "difftilt needs Python 3.11 or newer; name one: make setup PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[all,dev]'
	@touch $@
