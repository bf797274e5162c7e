# Two commands from a bare clone: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test check-real results clean

quickstart: .venv/done
	@$(BIN)/aigc-ray quickstart $(if $(findstring --s3,$(ARGS)),--s3) $(if $(findstring --exit,$(ARGS)),--exit)

test: .venv/done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile  # half of their time they wait for processes

# Minutes of real data: a trained model must beat what a trivial one reaches.
check-real: .venv/done
	$(BIN)/python -m pytest -m real tests/real

# The tables of the documents, from the result files.
results: .venv/done
	$(BIN)/python -m benchmarks.tables

.venv/done: constraints.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: Python 3.11 or newer is needed; none was found as '$(PYTHON)'"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Python 3.11 or newer is needed; '$(PYTHON)' is older; name another with PYTHON=…"; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: '$(PYTHON)' lacks the venv module; install it (python3-venv on Debian)"; exit 2; }
	@echo "installing into .venv (some minutes, once)" >&2
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch .venv/done

clean:
	rm -rf .venv aigc-home
