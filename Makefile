# criteria_hpo: `make help` lists what there is to do. Everything runs in .venv, which `make` builds when it is needed.

# Only the command line sets these: an environment that happens to have DATA or MODEL must not change a study.
FROM_COMMAND_LINE := STUDY DATA DATA_PATH MODEL N_TRIALS PRESET OVERRIDES PARAMS
$(foreach v,$(FROM_COMMAND_LINE),$(if $(findstring environment,$(origin $(v))),$(eval $(v) :=)))

PARAMS      := $(if $(PARAMS),$(PARAMS),studies/params/full.yaml)
# The Python that .venv is made from; empty: the first of python3, python3.13, ... that is 3.11 or newer.
PYTHON      ?=
# An extra package index to look for torch in, such as one that has CPU wheels or those of another CUDA version.
TORCH_INDEX ?=
# Recipes read the values from their environment, so that spaces and quotes in them do no harm.
export PYTHON TORCH_INDEX $(FROM_COMMAND_LINE)

TORCH := 2.13.0
STAMP := .venv/.installed
PY    := .venv/bin/python
PIP   := $(PY) -m pip -qq --disable-pip-version-check install -c constraints.txt

# A virtual environment does not survive being moved: the stamp says where it was made.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(shell pwd -P))
MOVED := moved
endif

.DEFAULT_GOAL := help
.PHONY: help venv demo hpo hpo_status lab test test-slow test-cuda readme export clean-outputs study-name moved
.NOTPARALLEL:

##@ Running
demo: venv ## search hyperparameters on the demo corpus (10 trials, minutes); results in studies/demo/
	@$(PY) -m criteria_hpo.notebooks --study demo --params studies/params/demo.yaml

hpo: study-name venv ## a real study: STUDY=name [DATA= DATA_PATH= MODEL= N_TRIALS= PRESET= OVERRIDES= PARAMS=]
	@set -- --study "$$STUDY" --params "$$PARAMS"; \
	[ -z "$$PRESET" ]    || set -- "$$@" "preset=$$PRESET"; \
	[ -z "$$DATA" ]      || set -- "$$@" "data=$$DATA"; \
	[ -z "$$DATA_PATH" ] || set -- "$$@" "data_path=$$DATA_PATH"; \
	[ -z "$$MODEL" ]     || set -- "$$@" "model=$$MODEL"; \
	[ -z "$$N_TRIALS" ]  || set -- "$$@" "n_trials=$$N_TRIALS"; \
	[ -z "$$OVERRIDES" ] || set -- "$$@" "overrides=$$OVERRIDES"; \
	exec $(PY) -m criteria_hpo.notebooks "$$@"

hpo_status: study-name venv ## how far a study is: STUDY=name
	@exec $(PY) -m criteria_hpo.cli command=status "hpo.study_name=$$STUDY"

lab: venv ## open JupyterLab on the notebooks
	@exec $(PY) -m jupyterlab

##@ Developing
venv: $(STAMP) ## make .venv and install everything, pinned [PYTHON= TORCH_INDEX=]

test: venv ## everything CI runs: clean and exported, notebooks, README, pytest
	@$(PY) tools/check_clean.py
	@$(PY) tools/run_notebooks.py
	@$(PY) tools/make_readme.py --check
	@$(PY) -m pytest tests -q

test-slow: venv ## what takes minutes: cells flagged slow, tests marked slow
	@$(PY) tools/run_notebooks.py --flags slow --timeout 3600
	@$(PY) -m pytest tests -q -m "slow and not cuda" || [ $$? -eq 5 ]

test-cuda: venv ## what needs an NVIDIA GPU: cells flagged cuda, tests marked cuda
	@$(PY) tools/run_notebooks.py --flags cuda --jobs 1 --timeout 3600
	@$(PY) -m pytest tests -q -m cuda || [ $$? -eq 5 ]

export: venv ## write criteria_hpo/ from nbs/
	@$(PY) -c "from nbdev.doclinks import nbdev_export; nbdev_export()"

readme: venv ## write README.md from nbs/index.ipynb
	@$(PY) tools/make_readme.py

clean-outputs: venv ## empty the outputs of nbs/*.ipynb and studies/*.ipynb
	@$(PY) tools/clean_outputs.py

##@ Help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
	/^##@ / { printf "\n%s\n", substr($$0, 5) } \
	/^[a-z_-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile
	@echo

study-name:
	@[ -n "$$STUDY" ] || { \
	  echo "Which study? Name it on the command line: make $(MAKECMDGOALS) STUDY=my_study" >&2; exit 2; }

# setuptools and wheel come first, so that what is built from source is built by the pinned ones.
$(STAMP): setup.py settings.ini constraints.txt pyproject.toml $(MOVED)
	@rm -f $(STAMP); \
	ok='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(PY) -c "$$ok" 2>/dev/null; then \
	  if [ -n "$$PYTHON" ]; then set -- "$$PYTHON"; else set -- python3 python3.13 python3.12 python3.11; fi; \
	  found=; for p in "$$@"; do if "$$p" -c "$$ok" 2>/dev/null; then found=$$p; break; fi; done; \
	  [ -n "$$found" ] || { echo "criteria_hpo needs Python 3.11 or newer with its venv module (looked at: $$*);" \
	    "install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	  echo "Making .venv with $$found ($$("$$found" -c 'import platform; print(platform.python_version())'))"; \
	  rm -rf .venv && "$$found" -m venv .venv; \
	fi
	@$(PIP) setuptools wheel
	@have='import sys, importlib.metadata as m; sys.exit(m.version("torch").split("+")[0] != "$(TORCH)")'; \
	if $(PY) -c "$$have" 2>/dev/null; then exit 0; fi; \
	set --; [ -z "$$TORCH_INDEX" ] || set -- --extra-index-url "$$TORCH_INDEX"; \
	if nvidia-smi -L >/dev/null 2>&1; then \
	  echo "Installing torch $(TORCH) with CUDA (several GB; 5 to 15 minutes the first time)"; \
	  if [ -z "$$TORCH_INDEX" ] && $(PIP) torch===$(TORCH) 2>/dev/null; then exit 0; fi; \
	else \
	  echo "Installing torch $(TORCH) (a minute for a CPU wheel, taken where pip finds one," \
	    "else several GB; make TORCH_INDEX=URL names an index that has it)"; \
	fi; \
	$(PIP) "$$@" torch==$(TORCH)
	@echo "Installing criteria_hpo and what it needs (2 to 4 minutes the first time)"
	@$(PIP) --no-build-isolation -e ".[dev]"
	@pwd -P > $(STAMP)
	@echo "Installed: $$($(PY) -c 'import torch; print("torch", torch.__version__, torch.cuda.device_count(), "GPU")')"
