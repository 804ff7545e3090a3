.PHONY: help demo demo-scratch test test-slow test-faults test-device test-page fuzz fuzz-serve check bench sbom wheel

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: .venv/.core ## train image search on the images of examples/ over pre-trained encoders, and write a report
	@.venv/bin/dualfuse demo

demo-scratch: .venv/.core ## the same with a VLMo from random weights: 10 minutes on two cores
	@.venv/bin/dualfuse demo --scratch

test: .venv/.test ## run the tests in parallel, one thread in each process
	@PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

test-slow: .venv/.test ## run the tests that are marked slow, in parallel: some minutes
	@PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal -m slow

test-faults: .venv/.test ## inject a fault at every write, rename and sync of the commands: two minutes
	@.venv/bin/python -m pytest -q -n auto --maxprocesses 8 -m slow tests/test_fault_fs.py

test-device: .venv/.test ## run the tests of training and inference on a simulated GPU; needs a C++ compiler
	@PYTHONPATH=tests .venv/bin/python -m pytest -q -p stand_in.plugin -W ignore tests/training tests/evaluation tests/losses tests/metrics tests/models tests/recipes \
		tests/report tests/search tests/tasks tests/inference tests/test_cli.py \
		--deselect tests/test_cli.py::test_in_a_process_of_its_own  # it rounds differently

test-page: .venv/.page ## run the tests of the page of dualfuse serve in Chromium, which is installed if there is none
	@scripts/install_chromium
	@DUALFUSE_SCREENSHOTS=$(SCREENSHOTS) DUALFUSE_PAGE_MODEL=$(PAGE_MODEL) .venv/bin/python -m pytest -q -m browser tests/search/server/page

fuzz: .venv/.test ## search for files that break a reader: some minutes of random inputs
	@HYPOTHESIS_PROFILE=minutes .venv/bin/python -m pytest -q tests/fuzz

fuzz-serve: .venv/.test ## fuzz the search service: some minutes of hostile requests
	@HYPOTHESIS_PROFILE=minutes .venv/bin/python -m pytest -q tests/fuzz/test_service.py

check: .venv/.dev ## run all checks of a change, or some: make check STEPS="lint types"
	@scripts/check $(STEPS)

bench: .venv/.test ## run the benchmarks, in comparison with other libraries
	@set -e; for name in import_time memory step bridgetower; do .venv/bin/python bench/$$name.py; done

sbom: .venv/.test ## write sbom.json: installed packages, versions and licenses (CycloneDX)
	@.venv/bin/python scripts/sbom > sbom.json

wheel: .venv/.dev ## build the wheel into dist/; the same commit gives the same bytes
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) .venv/bin/python -m pip wheel -q --no-deps --no-build-isolation -w dist .

.venv/.%: pyproject.toml constraints.txt scripts/setup
	@scripts/setup $*
	@touch $@
