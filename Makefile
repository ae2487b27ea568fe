# `make help` explains. Everything is installed into .venv; the embedded models go into the cache folder (~/.cache/memo).

SHELL := /bin/bash
# the first that is there, works (a version manager's stand-in may not) and is new enough
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 7860
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false
export GRADIO_ANALYTICS_ENABLED := False
# threads that wait sleep instead of spinning: on a shared machine two spinning teams stop each other
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help setup demo test lint notebooks bench clean

help:  ## this text
	@echo "make demo    set up, then start the app on http://$(HOST):$(PORT) (HOST=…, PORT=… change it)"
	@echo "make test    set up, install what the tests need, run ruff and every test"
	@echo "make setup   set up only: .venv, requirements.txt, the embedded models"
	@echo "make lint    ruff alone"
	@echo "make notebooks  execute the notebooks, save their outputs"
	@echo "make bench   every measurement, over the question sets in DATA=folder; hours on a CPU"
	@echo "make clean   delete .venv (the models in the cache folder stay)"

# rebuilt only when the requirements change: the second `make demo` needs no network
$(BIN)/.installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed (make … PYTHON=/path/to/python3.12)."; exit 2; }
	test -x $(BIN)/pip || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt "setuptools>=77"
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(BIN)/.tested: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[test]"
	touch $@

setup: $(BIN)/.installed  ## the environment and the embedded models
	@$(BIN)/python -m memo.models

demo: setup  ## the app
	@HOST=$(HOST) PORT=$(PORT) $(BIN)/python app.py

# the browser tests need a Chromium; where apt is at hand it is installed, else the error says what is missing
chromium:
	@command -v chromium chromium-browser google-chrome > /dev/null || { \
		command -v apt-get > /dev/null || { echo "Install Chromium for the browser tests."; exit 2; }; \
		SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$SUDO apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive $$SUDO apt-get install -y -qq --no-install-recommends chromium > /dev/null; }
.PHONY: chromium

lint: $(BIN)/.tested
	$(BIN)/ruff check .

test: setup $(BIN)/.tested chromium lint  ## ruff and every test
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

notebooks: setup $(BIN)/.tested chromium  ## executes the notebooks and saves their outputs
	$(BIN)/python notebooks/execute.py

# one measurement a line: its name, folder, split, context, further arguments
define SETS
squad squad dev_v1.1 group
squad2 squad dev_v2.0 group
hotpotqa hotpotqa dev_sentence question
musique musique dev question
2wiki 2wiki dev question
qmsum qmsum val group
fairytaleqa fairytaleqa val group
policyqa policyqa dev group
covidqa covidqa all group
tatqa tatqa dev group --where=answer_from=text
korquad1 korquad1 dev group
endef
export SETS
# a domain a line: its file, folder, split held out, other domains, what it is
define DOMAINS
law court_opinions valid evidence_inference law: court opinions
biomedicine evidence_inference validation court_opinions biomedicine: reports of trials
finance fed valid court_opinions finance: the Federal Reserve
wikitext2 wikitext2 valid court_opinions encyclopedia: WikiText-2
endef
export DOMAINS
DECODER_STEPS ?= 150
LIMIT ?= 200
ANSWER_EVERY ?= 1
RESULTS ?= assets/results

bench: $(BIN)/.tested  ## every measurement: make bench DATA=folder of question sets (LIMIT=200 ANSWER_EVERY=1)
	@test -d "$(DATA)" || { echo "make bench DATA=DIR: a folder with the sets (see docs/measuring.md)."; exit 2; }
	@echo "$$SETS" | while read -r name set split context more; do \
		$(BIN)/memo evaluate qa --data $(DATA)/$$set --split $$split --context $$context $$more \
			--limit $(LIMIT) --answer-every $(ANSWER_EVERY) --out $(RESULTS)/qa/$$name.json < /dev/null || exit 1; done
	$(BIN)/memo evaluate qa --data assets/examples --split en --context group --where=indirect=True \
		--limit $(LIMIT) --answer-every $(ANSWER_EVERY) --out $(RESULTS)/qa/examples-indirect.json
	@echo "$$DOMAINS" | while read -r name set held other about; do \
		$(BIN)/memo evaluate decoder --domain "$$about" --learn $(DATA)/$$set:train@1000000 \
			--held-out $(DATA)/$$set:$$held --test $(DATA)/$$set:test --other $(DATA)/$$other:test \
			--tokens-test 40000 --set steps=$(DECODER_STEPS) --set batch=16 --work runs/decoder/$$name \
			--out $(RESULTS)/decoder/$$name.json < /dev/null || exit 1; done
	$(BIN)/memo evaluate scaling --out $(RESULTS)/scaling.json
	$(BIN)/memo evaluate downstream --memory-decoder assets/models/smollm2-135m-law-decoder \
		--learnt $(DATA)/court_opinions:train@1000000 --facts 300 --data $(DATA)/pubmedqa --out $(RESULTS)/downstream.json
	$(BIN)/memo evaluate memory --data $(DATA)/books --split valid --limit 8 --memory-weights untrained \
		--out $(RESULTS)/memory.json
	$(BIN)/memo evaluate memory --data $(DATA)/books --split valid --limit 8 --out $(RESULTS)/memory-trained.json
	$(BIN)/memo evaluate study --texts assets/examples/minutes.md assets/examples/harrowmere.md --out $(RESULTS)/study.json
	$(BIN)/memo evaluate speed --out $(RESULTS)/speed.json
	$(BIN)/memo evaluate reliability --out $(RESULTS)/reliability.json
	$(BIN)/memo evaluate report --results $(RESULTS)

clean:
	rm -rf $(VENV)
