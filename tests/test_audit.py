"""`command=audit` finds every leak that is planted, none in clean tables, and prints no text of a post."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from criteria_hpo import cli
from criteria_hpo.audit.planted import FOLDS, POSTS, clean_table, found_in, with_epochs, with_test, with_thresholds

SEEDS = range(8)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_found_in_clean_tables(seed: int) -> None:
    table = clean_table(seed)
    assert found_in(table) == {}
    assert found_in(table.assign(threshold=0.5), table[["post_id", "author", "fold"]], claimed="0.5") == {}
    assert found_in(with_test(table, seed)) == {}
    assert found_in(with_epochs(table, seed, honest=True)) == {}


def test_groups_and_posts_on_both_sides() -> None:
    table = clean_table(1)
    moved = table.copy()
    moved.loc[moved.author == 3, "fold"] = [0, 1, 2, 3, 4]
    assert found_in(moved.assign(threshold=0.5)) == {"groups on both sides": "leak"}
    copied = table.assign(threshold=0.5)
    copied.loc[copied.index[copied.fold == 1][:3], "text"] = [f"  {t.upper()}" for t in copied.text[copied.fold == 0][:3]]
    assert found_in(copied) == {"posts (by normalised text) on both sides": "leak"}
    again = pd.concat([table, table.iloc[:2].assign(fold=(table.fold.iloc[:2] + 1) % FOLDS)], ignore_index=True)
    assert found_in(again.assign(threshold=0.5)).keys() >= {"groups on both sides", "posts (by id) on both sides"}
    official = with_test(table, 1)
    official.loc[official.index[official.split == "test"][0], "author"] = official.author[official.split == "train"].iloc[0]
    assert found_in(official) == {"groups on both sides": "leak"}


def test_folds_cut_anew() -> None:
    table = clean_table(2).assign(threshold=0.5)
    two = [table.assign(trial=name, score=table.score if name == "a" else 1 - table.score) for name in "ab"]
    assert found_in(pd.concat(two, ignore_index=True)) == {}
    renumbered = two[1].assign(fold=(two[1].fold + 2) % FOLDS)
    assert found_in(pd.concat([two[0], renumbered], ignore_index=True)).get("folds cut anew") is None
    anew = two[1].assign(fold=two[1].author // 2 % FOLDS)
    assert found_in(pd.concat([two[0], anew], ignore_index=True))["folds cut anew"] == "leak"
    other = table[["post_id", "author"]].assign(fold=table.author // 2 % FOLDS)
    assert found_in(table, other)["folds cut anew"] == "leak"


@pytest.mark.parametrize("seed", SEEDS)
def test_choices_made_on_what_is_scored(seed: int) -> None:
    table = clean_table(seed)
    leak = {"thresholds chosen on what is scored": "leak"}
    by_fold = with_thresholds(table, lambda fold: table.fold == fold)
    assert found_in(by_fold) == leak
    assert found_in(with_thresholds(table, lambda fold: table.fold >= 0)) == leak
    assert found_in(by_fold.assign(threshold=by_fold.threshold.round(4))) == leak


def test_epochs_chosen_on_what_is_scored() -> None:
    """Five folds hold little evidence on epochs that are alike: most tables show it, none anything else."""
    found = [found_in(with_epochs(clean_table(seed), seed, honest=False)) for seed in SEEDS]
    leak = {"epochs chosen on what is scored": "leak"}
    assert found.count(leak) >= 6 and all(one in ({}, leak) for one in found), found


def test_looks_at_the_test() -> None:
    table = clean_table(3)
    assert found_in(with_test(table, 3, settings=9))["test looked at more than once"] == "leak"
    assert found_in(with_test(table, 3, settings=2))["test looked at more than once"] == "doubt"


def test_constant_answers_and_split_ties() -> None:
    table = clean_table(4).drop(columns="threshold")
    assert found_in(table.assign(score=table.fold / 10))["constant answers"] == "leak"
    assert found_in(table.assign(score=0.7 + table.score / 10))["constant answers"] == "doubt"
    tied = found_in(table.assign(score=0.5, y_pred=table.label))
    assert tied["decisions that split ties"] == tied["constant answers"] == "leak"


def test_claims_beyond_the_groups() -> None:
    table = clean_table(5)
    claim = "scores above what the groups can show"
    assert found_in(table, claimed="0.99") == found_in(table, claimed="0.7012") == {claim: "doubt"}
    assert found_in(table.assign(author=table.fold)) == {claim: "doubt"}
    rng = np.random.default_rng(0)
    near = [
        table.assign(model=name, score=(table.score + noise).clip(0, 1))
        for name, noise in (("a", 0), ("b", rng.normal(0, 0.02, POSTS)))
    ]
    assert found_in(pd.concat(near, ignore_index=True))["a lead that the groups do not show"] == "doubt"


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_the_command(extension: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, folds = tmp_path / f"theirs{extension}", tmp_path / "folds.csv"
    table = clean_table(6)
    table.loc[table.index[table.fold == 1][0], "text"] = table.text[table.fold == 0].iloc[0]
    writers = {
        ".csv": lambda: table.to_csv(source, index=False),
        ".tsv": lambda: table.to_csv(source, index=False, sep="\t"),
        ".jsonl": lambda: table.to_json(source, orient="records", lines=True),
        ".parquet": lambda: table.to_parquet(source, index=False),
    }
    writers[extension]()
    table[["post_id", "author", "fold"]].to_csv(folds, index=False)
    words = ["command=audit", f"predictions={source}", f"folds={folds}", f"output={tmp_path / 'found.json'}"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    stored = (tmp_path / "found.json").read_text() + (tmp_path / "found.csv").read_text()
    assert "LEAK         posts (by normalised text) on both sides: 1 of 499" in out and "group_id = author" in out
    assert "walnut" not in out + stored
    verdicts = {one["check"]: one["verdict"] for one in json.loads((tmp_path / "found.json").read_text())["findings"]}
    assert verdicts["posts (by normalised text) on both sides"] == "leak" and verdicts["groups on both sides"] == "clean"


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = tmp_path / "theirs.csv"
    source.write_text("score,label,fold\n0.5,1,0\nwalnut,0,1\n")
    other, bare = tmp_path / "other.csv", tmp_path / "bare.csv"
    other.write_text("score,label,fold\n0.5,1,0\n0.4,0,1\n")
    bare.write_text("score,post_id\n0.5,1\n0.4,2\n")
    cases = [
        ([], "audit.predictions is missing"),
        ([f"predictions={tmp_path / 'none.csv'}"], "no such file; check audit.predictions"),
        ([f"predictions={source}"], "row 3: score is not a finite number"),
        ([f"predictions={source}", "audit.columns.label=y"], "no such column"),
        ([f"predictions={other}", f"folds={source}", "audit.fold_columns.fold=folds"], "audit.fold_columns.fold=folds: "),
        ([f"predictions={other}", f"folds={other}", "audit.fold_columns.split=fold"], "is another word than train, val and test"),
        ([f"predictions={other}", f"folds={bare}"], "no column fold or split is known; name it by audit.fold_columns.fold"),
        ([f"predictions={source}", "audit.columns.probability=fold", "audit.metric=f2"], "unknown metric 'f2'"),
        ([f"predictions={source}", "audit.claimed=high"], "a number as published"),
    ]
    for words, message in cases:
        assert cli.main(["command=audit", *words]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1 and "walnut" not in err
    assert not (tmp_path / "theirs.csv.audit.json").exists()
