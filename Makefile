# criteria_hpo: `make help` lists the targets. Everything runs in .venv, which `make` builds when it is needed.

# The variables that each target accepts on the command line. make itself accepts any NAME=VALUE: N_TRIAL=3 would start 2,000 trials.
STUDY_TAKES   := STUDY DATA DATA_PATH MODEL N_TRIALS PRESET OVERRIDES PARAMS
DEBERTA_TAKES := N_TRIALS MODEL_NAME OVERRIDES
TARGETS       := help venv assets demo hpo evaluate result compare hpo_deberta_base_aug hpo_deberta_base_noaug hpo_deberta_nli_aug \
	hpo_deberta_nli_noaug hpo_deberta_base_nli_aug hpo_deberta_base_nli_noaug hpo_status dashboard lab benchmark lint format extras test \
	test-slow test-cuda readme export clean-outputs
$(foreach t,$(TARGETS),$(eval TAKES.$t :=$(if $(findstring deberta,$t),$(DEBERTA_TAKES))))
TAKES.hpo        := $(STUDY_TAKES)
TAKES.evaluate   := $(STUDY_TAKES)
TAKES.result     := $(STUDY_TAKES)
TAKES.compare    := STUDIES OVERRIDES
TAKES.hpo_status := STUDY
TAKES.demo       := AUG N_TRIALS
TAKES.dashboard  := STUDY PORT
TAKES.lab        := ROOT IP PORT
TAKES.benchmark  := DEVICE SIZE WORKS

# Only the command line sets these: DATA or MODEL in the environment must not change a study.
FROM_COMMAND_LINE := $(sort $(foreach t,$(TARGETS),$(TAKES.$t)))
$(foreach v,$(FROM_COMMAND_LINE),$(if $(findstring environment,$(origin $(v))),$(eval $(v) :=)))

# The Python for .venv; empty: the first of python3, python3.13, ... that is 3.11 or newer.
PYTHON      ?=
# An extra package index for torch, for example one with CPU wheels or with wheels of another CUDA version.
TORCH_INDEX ?=
GIVEN := $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$v))
# Values are used as typed (make would expand the $b of a folder a$b), and recipes read them from their environment, so that spaces,
# quotes and dollars need no escaping.
TYPED := PYTHON TORCH_INDEX $(FROM_COMMAND_LINE)
$(foreach v,$(TYPED),$(eval override $(v) := $$(value $(v))))
export $(TYPED)

TORCH := 2.13.0
STAMP := .venv/.installed
PY    := .venv/bin/python
PIP   := $(PY) -m pip -qq --disable-pip-version-check install -c constraints.txt

BY_HAND := nbs studies/*.ipynb tests tools setup.py

# $(call shell_word,VALUE): VALUE as one word of a shell command, quoted only if necessary.
comma    := ,
HARMLESS := a b c d e f g h i j k l m n o p q r s t u v w x y z A B C D E F G H I J K L M N O P Q R S T U V W X Y Z \
            0 1 2 3 4 5 6 7 8 9 . , _ - / : = @ +
without    = $(if $1,$(call without,$(wordlist 2,99,$1),$(subst $(firstword $1),,$2)),$2)
shell_word = $(if $(call without,$(HARMLESS),$1),'$(subst ','\'',$1)',$1)

# $(call nearest,WORD,NAMES): ` (did you mean NAME?)`, by edit distance or by a common prefix.
define NEAREST
function least(a, b) { return a < b ? a : b } \
function changes(a, b,   i, j, row, old, kept) { \
  for (j = 0; j <= length(b); j++) row[j] = j; \
  for (i = 1; i <= length(a); i++) { old = row[0]; row[0] = i; \
    for (j = 1; j <= length(b); j++) { kept = row[j]; \
      row[j] = least(least(row[j], row[j - 1]) + 1, old + (substr(a, i, 1) != substr(b, j, 1))); old = kept } } \
  return row[length(b)] } \
BEGIN { word = toupper(ARGV[1]); best = 3; \
  for (k = 2; k < ARGC; k++) if ((d = changes(word, ARGV[k])) < best) { best = d; name = ARGV[k] } \
  for (k = 2; k < ARGC; k++) if (!name && (index(word, ARGV[k]) == 1 || index(ARGV[k], word) == 1)) name = ARGV[k]; \
  if (name) printf " (did you mean %s?)", name }
endef
nearest = $(shell awk '$(NEAREST)' $(call shell_word,$1) $2)

GOALS := $(or $(MAKECMDGOALS),help)
TAKEN := $(foreach t,$(GOALS),$(TAKES.$t))
ODD   := $(filter-out $(TAKEN) PYTHON TORCH_INDEX PY,$(GIVEN))
ifneq ($(and $(ODD),$(if $(filter-out $(TARGETS),$(GOALS)),,ours)),)
$(error make $(GOALS) does not accept $(firstword $(ODD))$(call nearest,$(firstword $(ODD)),$(TAKEN)); it accepts \
$(or $(TAKEN),only PYTHON and TORCH_INDEX)$(if $(filter OVERRIDES,$(TAKEN)),$(comma) and other settings as OVERRIDES="setting=value"))
endif

# $(call deberta,NAME,AUGMENTED,MODEL_NAME): the settings of the search NAME with a DeBERTa-v3; without MODEL_NAME that of model=deberta_nli.
deberta = n_trials=$(call shell_word,$(or $(N_TRIALS),2000)) model=deberta_nli \
$(if $3,model.model_name=$(call shell_word,$3) )experiment_name=deberta_v3_$1 hpo.study_name=pc_ce_debv3_$1 \
augmentation.enable=$2 hpo.search_space.aug_enable.choices=[$2] training.num_epochs=100 \
training.early_stopping_patience=20$(if $(OVERRIDES), overrides=$(call shell_word,$(OVERRIDES)))

# A virtual environment stops working when it is moved, so the stamp holds its path.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(shell pwd -P))
MOVED := moved
endif

.DEFAULT_GOAL := help
.PHONY: $(TARGETS) study-name moved
.NOTPARALLEL:

##@ Running
demo: assets ## search on real posts (10 trials, minutes) and score the winner; results in studies/demo/ [N_TRIALS=; AUG=1: with augmentation]
	@case "$$AUG" in ''|0) name=demo ;; 1) name=demo_aug ;; \
	  *) echo "AUG=$$AUG is not supported: set AUG=1 to search with augmentation, or AUG=0" >&2; exit 2 ;; esac; \
	set -- --study $$name --params studies/params/$$name.yaml; \
	[ -z "$$N_TRIALS" ] || set -- "$$@" "n_trials=$$N_TRIALS"; \
	$(NOTEBOOK) && exec $(NOTEBOOK) --template studies/evaluate.ipynb

NOTEBOOK = $(PY) -m criteria_hpo.notebooks "$$@"
hpo: study-name venv ## run a study: STUDY=name [DATA= DATA_PATH= MODEL= N_TRIALS= PRESET= OVERRIDES= PARAMS=]
evaluate: study-name venv ## confirm the best settings of a study, refit the winner, score it once: STUDY=name [others than those of make hpo]
result: study-name venv ## both, one after the other: from a table of pairs to a model and its scores; STUDY=name [the variables of make hpo]
hpo evaluate result:
	@set -- --study "$$STUDY"; \
	if [ -n "$$PARAMS" ]; then set -- "$$@" --params "$$PARAMS"; else set -- "$$@" --defaults studies/params/full.yaml; fi; \
	[ -z "$$PRESET" ]    || set -- "$$@" "preset=$$PRESET"; \
	[ -z "$$DATA" ]      || set -- "$$@" "data=$$DATA"; \
	[ -z "$$DATA_PATH" ] || set -- "$$@" "data_path=$$DATA_PATH"; \
	[ -z "$$MODEL" ]     || set -- "$$@" "model=$$MODEL"; \
	[ -z "$$N_TRIALS" ]  || set -- "$$@" "n_trials=$$N_TRIALS"; \
	[ -z "$$OVERRIDES" ] || set -- "$$@" "overrides=$$OVERRIDES"; \
	$(if $(filter hpo,$@),exec $(NOTEBOOK),$(if $(filter result,$@),$(NOTEBOOK) && )exec $(NOTEBOOK) --template studies/evaluate.ipynb)

compare: venv ## show stored studies side by side, and which winner is better: STUDIES="first second" [OVERRIDES=]
	@[ -n "$$STUDIES" ] || { echo 'STUDIES is missing: run make compare STUDIES="first second"' >&2; exit 2; }; \
	set -- --studies "$$STUDIES"; \
	[ -z "$$OVERRIDES" ] || set -- "$$@" "overrides=$$OVERRIDES"; \
	exec $(PY) -m criteria_hpo.notebooks "$$@"

hpo_deberta_base_aug: venv ## search of 2,000 trials with DeBERTa-v3-base and augmentation [N_TRIALS= MODEL_NAME=FOLDER_OR_ID OVERRIDES=]
	$(PY) -m criteria_hpo.cli command=hpo $(call deberta,base_aug,true,$(or $(MODEL_NAME),microsoft/deberta-v3-base))

hpo_deberta_base_noaug: venv ## the same search without augmentation
	$(PY) -m criteria_hpo.cli command=hpo $(call deberta,base_noaug,false,$(or $(MODEL_NAME),microsoft/deberta-v3-base))

hpo_deberta_nli_aug: venv ## the same search with DeBERTa-v3 trained on NLI (model=deberta_nli) and augmentation
	$(PY) -m criteria_hpo.cli command=hpo $(call deberta,nli_aug,true,$(MODEL_NAME))

hpo_deberta_nli_noaug: venv ## the search with NLI, without augmentation
	$(PY) -m criteria_hpo.cli command=hpo $(call deberta,nli_noaug,false,$(MODEL_NAME))

hpo_deberta_base_nli_aug: hpo_deberta_nli_aug
hpo_deberta_base_nli_noaug: hpo_deberta_nli_noaug

hpo_status: study-name venv ## print the progress of a study: STUDY=name
	@exec $(PY) -m criteria_hpo.cli command=status "hpo.study_name=$$STUDY"

dashboard: study-name venv ## open optuna-dashboard on a study, for reading, on this machine only: STUDY=name [PORT=8080]
	@have='import sys, importlib.util as u; sys.exit(u.find_spec("optuna_dashboard") is None)'; \
	$(PY) -c "$$have" || { echo "Installing optuna-dashboard (seconds)"; $(PIP) --no-build-isolation -e ".[dev,dashboard]"; }
	@exec $(PY) -m criteria_hpo.cli command=dashboard "hpo.study_name=$$STUDY" "dashboard.port=$${PORT:-8080}"

lab: venv ## open JupyterLab on the study notebook [PORT= IP=; ROOT=1: as root, in a container]
	@case "$$ROOT" in 1) set -- --allow-root --no-browser ;; \
	  ''|0) set --; [ "$$(id -u)" != 0 ] || { \
	    echo "JupyterLab does not start as root without make lab ROOT=1 (in a container with IP=0.0.0.0 and a published PORT=)" >&2; \
	    exit 2; } ;; \
	  *) echo "ROOT=$$ROOT is not supported: set ROOT=1 to start JupyterLab as root" >&2; exit 2 ;; esac; \
	[ -z "$$IP" ]   || set -- "$$@" "--ip=$$IP"; \
	[ -z "$$PORT" ] || set -- "$$@" "--port=$$PORT"; \
	exec $(PY) -m jupyterlab --ServerApp.root_dir=. "$$@" studies/hpo.ipynb

benchmark: assets ## measure the speed beside other libraries, on an idle machine; results in studies/benchmark-DEVICE/ [DEVICE=cpu|cuda WORKS= SIZE=]
	@device=$${DEVICE:-cpu}; out=benchmark-$$device; \
	case "$$device" in cpu) ;; cuda) nvidia-smi -L >/dev/null 2>&1 || { \
	    echo "DEVICE=cuda needs an NVIDIA GPU, and nvidia-smi finds none: set DEVICE=cpu" >&2; exit 2; } ;; \
	  *) echo "DEVICE=$$device is not supported: set DEVICE=cpu or DEVICE=cuda" >&2; exit 2 ;; esac; \
	have='import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, ("sentence_transformers", "datasets", "accelerate"))))'; \
	$(PY) -c "$$have" || { echo "Installing the libraries to compare with (a minute)"; $(PIP) --no-build-isolation -e ".[dev,bench]"; }; \
	mkdir -p "studies/$$out"; \
	exec $(PY) -m papermill --log-output --no-progress-bar studies/benchmark.ipynb "studies/$$out/benchmark.ipynb" -k python3 \
	  -p device "$$device" -p size "$${SIZE:-full}" -p seeds 20 -r works "$$WORKS" -r out "$$out"

##@ Developing
venv: $(STAMP) ## create .venv and install all dependencies, pinned [PYTHON= TORCH_INDEX=]

extras: venv ## install every optional extra, pinned: Ray, Slurm, LoRA, ONNX, MLflow, the dashboard, the libraries to compare with
	@echo "Installing the optional extras (a minute or two)"
	@$(PIP) --no-build-isolation -e ".[dev,all]"

test: assets lint ## run everything that CI runs: lint, clean and exported, style, notebooks, README, pytest
	@$(PY) tools/check_clean.py
	@$(PY) tools/style_budgets.py
	@$(PY) tools/run_notebooks.py
	@$(PY) tools/make_readme.py --check
	@$(PY) -m pytest tests -q -n 2 --dist loadfile --no-loadscope-reorder

assets: venv ## download WordNet and a tagger for augmentation, if they are missing
	@$(PY) -m criteria_hpo.cli command=assets

lint: venv ## run ruff on everything, black on hand-written files (nbdev writes criteria_hpo/), mypy on the package
	@$(PY) -m ruff check .
	@$(PY) -m black --check $(BY_HAND)
	@$(PY) -m mypy

format: venv ## fix what ruff and black can fix, export, write README.md
	@$(PY) -m ruff check --fix $(BY_HAND)
	@$(PY) -m black --quiet $(BY_HAND)
	@$(MAKE) --no-print-directory export readme

test-slow: venv ## run the cells flagged slow and the tests marked slow (minutes)
	@$(PY) tools/run_notebooks.py --flags slow --timeout 3600
	@$(PY) -m pytest tests -q -m "slow and not cuda" || [ $$? -eq 5 ]

test-cuda: venv ## run the cells flagged cuda and the tests marked cuda (needs an NVIDIA GPU)
	@$(PY) tools/run_notebooks.py --flags cuda --jobs 1 --timeout 3600
	@$(PY) -m pytest tests -q -m cuda || [ $$? -eq 5 ]

export: venv ## write criteria_hpo/ from nbs/
	@$(PY) -c "from nbdev.doclinks import nbdev_export; nbdev_export()"

readme: venv ## write README.md from nbs/index.ipynb
	@$(PY) tools/make_readme.py

clean-outputs: venv ## remove the outputs from nbs/ and studies/*.ipynb
	@$(PY) tools/clean_outputs.py

##@ Help
help: ## print this list
	@awk 'BEGIN { FS = ":.*## " } \
	/^##@ / { printf "\n%s\n", substr($$0, 5) } \
	/^[a-z_-]+:.*## / { printf "  make %-22s %s\n", $$1, $$2 }' Makefile
	@echo

study-name:
	@[ -n "$$STUDY" ] || { \
	  echo "STUDY is missing: run make $(MAKECMDGOALS) STUDY=my_study" >&2; exit 2; }

# setuptools and wheel come first, so that packages from source are built with the pinned versions.
$(STAMP): setup.py settings.ini constraints.txt pyproject.toml $(MOVED)
	@rm -f $(STAMP); \
	ok='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(PY) -c "$$ok" 2>/dev/null; then \
	  if [ -n "$$PYTHON" ]; then set -- "$$PYTHON"; else set -- python3 python3.13 python3.12 python3.11; fi; \
	  found=; for p in "$$@"; do if "$$p" -c "$$ok" 2>/dev/null; then found=$$p; break; fi; done; \
	  [ -n "$$found" ] || { echo "criteria_hpo needs Python 3.11 or newer with its venv module (tried: $$*);" \
	    "install it, or set its path: make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
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
	  echo "Installing torch $(TORCH) (a minute for a CPU wheel if pip finds one," \
	    "else several GB; make TORCH_INDEX=URL adds an index with CPU wheels)"; \
	fi; \
	$(PIP) "$$@" torch==$(TORCH)
	@echo "Installing criteria_hpo and its dependencies (2 to 4 minutes the first time)"
	@$(PIP) --no-build-isolation -e ".[dev]"
	@pwd -P > $(STAMP)
	@echo "Installed: $$($(PY) -c 'import torch; print("torch", torch.__version__, torch.cuda.device_count(), "GPU")')"
