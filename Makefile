# The commands to remember: make demo, make test, make check. Each does its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready-$(shell cat pyproject.toml hatch_build.py streamserve/native/*.[ch] | cksum | cut -d' ' -f1)

# Many processes are started: without it each would compile the package anew, half a second or more
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench fuzz chaos prove clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP):
	@echo "installing packages into $(VENV): about a minute, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@rm -f $(VENV)/.ready-*; touch $@

setup: $(STAMP)  ## the virtual environment with every package (the other targets do it themselves)

demo: $(STAMP)  ## nine months of real flights, scored end to end
	$(BIN)/streamserve demo $(ARGS)

test: $(STAMP)  ## every test, against a real Kafka and a real Redis
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(STAMP)  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)  ## what an event costs, how soon it is answered, and how both grow: more than an hour
	$(BIN)/streamserve bench $(ARGS)

fuzz: $(STAMP)  ## broken events through the whole pipeline: INPUTS=1000000, SEED=, FORMAT=avro|json|both
	$(BIN)/python -m fuzz --inputs $(or $(INPUTS),100000) --format $(or $(FORMAT),both) $(if $(SEED),--seed $(SEED)) $(ARGS)

chaos: $(STAMP)  ## faults against delivery, and a look for every event: FAULTS=100 SEED=1 DELIVERY=at_least_once|exactly_once|both
	$(BIN)/python -m chaos --faults $(or $(FAULTS),100) --seed $(or $(SEED),1) --delivery $(or $(DELIVERY),both) $(ARGS)

prove: $(STAMP)  ## a long stream, many commands, dying workers; then all scored again: EVENTS=1000000 SEED=1 DELIVERY=
	$(BIN)/python -m chaos --prove $(or $(EVENTS),1000000) --seed $(or $(SEED),1) --delivery $(or $(DELIVERY),both) $(ARGS)

format: $(STAMP)  ## mend what check finds, where a tool can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: $(STAMP)  ## stop local services, forget local state
	-$(BIN)/streamserve dev reset --yes
	rm -rf .streamserve $(VENV)
