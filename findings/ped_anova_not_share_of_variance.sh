#!/usr/bin/env bash
# The parameter that makes 99.9 % of the variance of the scores comes second in Optuna 5's importances, with a quarter of the sum.
#
# Packages: optuna 5.0.0, scikit-learn 1.9.1 (for fANOVA, the default before).
# Expected: `get_param_importances` gives shares of 1 of what decides the score. A learning rate above which half of all trials collapse
#   has nearly all of it, a dropout that moves the others by .02 next to nothing.
# Seen: the new default, PED-ANOVA, asks how far the best tenth of the trials differs in a parameter from all trials. Half of the range of the
#   rate is as good as the best: a small difference. The best dropouts lie in a fifth of its range: a large one. Dropout gets about three
#   quarters and more, with random search and with TPE, which soon leaves the bad half. fANOVA gives the rate everything.
# Why it matters here: the chart of importances reads as "what may be left at its default", and the answer may be the parameter
#   that breaks training. Read a low share as: the best trials do not care where in the searched range it lies, once it works.
#   The product's titles and notes say what is compared, "What sets the best trials apart" (nbs/plotting/10_importance.ipynb).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install optuna==5.0.0 scikit-learn==1.9.1 numpy==2.4.6
cat > "$folder/shares.py" <<'PY'
import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.samplers import RandomSampler, TPESampler

optuna.logging.set_verbosity(optuna.logging.ERROR)


def score(rate: float, dropout: float) -> float:
    return 0.0 if rate > 3e-5 else 0.7 - 0.04 * dropout


def objective(trial: optuna.Trial) -> float:
    noise = np.random.default_rng(trial.number).normal() * 0.001
    return score(trial.suggest_float("rate", 1e-6, 1e-3, log=True), trial.suggest_float("dropout", 0, 0.5)) + noise


rng = np.random.default_rng(0)
rates, dropouts = 10 ** rng.uniform(-6, -3, 10_000), rng.uniform(0, 0.5, 10_000)
scores = np.array([score(*one) for one in zip(rates, dropouts, strict=True)])
works = rates <= 3e-5
by_rate = np.var(np.where(works, scores[works].mean(), 0.0)) / np.var(scores)
print(f"optuna {optuna.__version__}: the rate makes {by_rate:.2%} of the variance over the search space")
assert by_rate > 0.999
for sampler in (RandomSampler, TPESampler):
    shares, before = [], []
    for seed in range(6):
        study = optuna.create_study(direction="maximize", sampler=sampler(seed=seed))
        study.optimize(objective, n_trials=100)
        shares.append(get_param_importances(study)["rate"])
        before.append(float(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))["rate"]))
    print(f"{sampler.__name__}: rate {np.mean(shares):.2f} (at most {max(shares):.2f}), by fANOVA {np.mean(before):.2f}")
    assert np.mean(shares) < 0.35 and max(shares) < 0.5, "changed: the rate comes first"
    assert min(before) > 0.9, "changed: fANOVA is no share of variance"
PY
"$folder/venv/bin/python" "$folder/shares.py"
echo "as described"
