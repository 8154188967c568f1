#!/usr/bin/env bash
# The same seed, the same trials, and the first child of a generation of NSGA-II is another one than after a crash.
#
# Package: optuna 5.0.0.
# Expected: a sampler made anew with the same seed over the same finished trials suggests the same setting. A trial that failed has no
#   value, belongs to no generation and takes part in no selection, so it changes nothing.
# Seen: the trial that selects the parents of a generation gets them in order of their rank, and stores their ids in the study. Each
#   later trial reads the ids and gets the parents in order of their numbers. The same random numbers then choose other parents.
# Why it matters here: a study that is killed and resumed should equal an uninterrupted one. A worker that dies after it has selected the
#   parents leaves a slot that is sampled again, as another setting. `SlotNsga2` (search/40_samplers) sorts the parents in both cases.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install optuna==5.0.0 numpy==2.4.6
cat > "$folder/parents.py" <<'PY'
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import NSGAIISampler

optuna.logging.set_verbosity(optuna.logging.ERROR)
SPACE = {"rate": FloatDistribution(1e-6, 1e-4, log=True), "dropout": FloatDistribution(0, 0.5), "size": CategoricalDistribution([16, 32])}


def child(seed: int, failed_before: bool) -> dict:
    "The first child of the second generation, or the one that takes the place of a first child that failed."
    study = optuna.create_study()
    for number, value in enumerate((0.5, 0.2, 0.4, 0.1, 0.3, 0.6)):
        study.sampler = NSGAIISampler(population_size=6, seed=100 + number)
        study.tell(study.ask(SPACE), value)
    for _ in range(1 + failed_before):
        study.sampler = NSGAIISampler(population_size=6, seed=seed)
        trial = study.ask(SPACE)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return trial.params


same = sum(child(seed, False) == child(seed, True) for seed in range(20))
print(f"optuna {optuna.__version__}: after a failed trial {same} of 20 first children of a generation are the same")
assert 0 < same < 20, "changed: the order of the parents no longer depends on the cache"
assert all(child(seed, True) == child(seed, True) for seed in range(3)), "the same calls twice give the same child"
PY
"$folder/venv/bin/python" "$folder/parents.py"
echo "as described"
