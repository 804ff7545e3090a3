.PHONY: help demo test test-slow test-device fuzz check bench

help: ## say what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: .venv/.core ## train a small model on the images in examples/ and search them
	@.venv/bin/dualfuse demo

test: .venv/.test ## run the tests
	@.venv/bin/python -m pytest -q

test-slow: .venv/.test ## run the tests that train for longer
	@.venv/bin/python -m pytest -q -m slow

test-device: .venv/.test ## run the tests that train and answer on a stand-in for a GPU; needs a C++ compiler
	@PYTHONPATH=tests .venv/bin/python -m pytest -q -p stand_in.plugin -W ignore tests/training tests/evaluation tests/losses tests/metrics tests/models tests/recipes \
		tests/report tests/search tests/tasks tests/inference tests/test_cli.py \
		--deselect tests/test_cli.py::test_in_a_process_of_its_own  # its rounding is another one

fuzz: .venv/.test ## look for files that break a reader, some minutes, others each time
	@HYPOTHESIS_PROFILE=minutes .venv/bin/python -m pytest -q tests/fuzz

check: .venv/.dev ## what has to pass before a change lands; some steps only: make check STEPS="lint types"
	@scripts/check $(STEPS)

bench: .venv/.test ## measure, and compare with what one would use otherwise
	@set -e; for name in import_time memory step bridgetower; do .venv/bin/python bench/$$name.py; done

.venv/.%: pyproject.toml constraints.txt scripts/setup
	@scripts/setup $*
	@touch $@
