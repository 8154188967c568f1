"""The cache: its owner's alone, purged of every word of a post, not under the hands of a study that writes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from criteria_hpo.augmentation import make_variants as augment
from criteria_hpo.augmentation.language import TAGGER, fetch_language_data, require_language_data
from criteria_hpo.augmentation.wording import WORD
from criteria_hpo.config.load import load_config

ROOT = Path(__file__).resolve().parent.parent
PHRASE = "umbrella"


def command(name: str, **env: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "criteria_hpo.cli", f"command={name}"]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | env)


@pytest.fixture
def language():
    """WordNet and the tagger are where nltk finds them, whatever folder is the cache from now on."""
    fetch_language_data()
    require_language_data()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache that is left open to all."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o755)
    monkeypatch.setenv("CRITERIA_HPO_CACHE", str(folder))
    return folder


def holding(folder: Path) -> list[str]:
    """The files below a folder in which the phrase stands."""
    return [path.name for path in folder.rglob("*") if path.is_file() and PHRASE.encode() in path.read_bytes()]


def make(rewrite):
    """The variants of six posts, by a rewriter that is called once a post."""
    posts = [f"I slept badly in house number {n}; the alarm rings." for n in range(6)]
    columns = {"post": posts, "criterion_id": "s", "criterion": "Bad sleep.", "label": 1, "evidence": [()] * 6}
    ids = [f"p{n}" for n in range(6)]
    pairs = pd.DataFrame({"post_id": ids, **columns, "group_id": ids})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "make_rewriter", lambda *args: rewrite)
        return augment.make_variants(pairs, load_config(["augmentation=nlpaug"]).augmentation, "synonym", "", seed=1)


def reworded(sentences):
    return [[PHRASE] * len(WORD.findall(sentence)) for sentence in sentences]


def test_a_purge_does_not_reach_into_a_study_that_writes(language, cache, tell):
    """While variants are made the purge leaves them and says so; afterwards it takes all, and the next study makes the same."""
    asked = []

    def rewrite(sentences):
        asked.append(command("purge_cache"))
        return reworded(sentences)

    made = make(rewrite)
    meanwhile = asked[0]
    assert meanwhile.returncode == 2 and meanwhile.stderr.count("\n") == 1 and "a study is writing" in meanwhile.stderr
    assert made.new == 6 and len(holding(cache)) == 1
    assert {oct(place.stat().st_mode & 0o777) for place in (cache, cache / "variants")} == {"0o700"}
    first, again = command("purge_cache"), command("purge_cache")
    tell("purge_cache", "while a study rewords posts", meanwhile.stderr.strip())
    tell("purge_cache", "afterwards", " ".join(first.stdout.split()))
    assert first.returncode == again.returncode == 0 and not holding(cache)
    assert "deleted: 1 files" in first.stdout and "deleted: 0 files" in again.stdout
    assert make(reworded).edits == made.edits


@pytest.fixture
def own_data(tmp_path):
    """A folder with nltk's WordNet and tagger, as a machine may have one."""
    shutil.copytree(fetch_language_data() / "taggers" / TAGGER, tmp_path / "nltk_data" / "taggers" / TAGGER)
    (tmp_path / "nltk_data" / "corpora").mkdir()
    (tmp_path / "nltk_data" / "corpora" / "wordnet").symlink_to(fetch_language_data() / "corpora" / "wordnet")
    return tmp_path / "nltk_data"


def test_the_machines_own_language_data_are_used(own_data, cache):
    done = command("assets", NLTK_DATA=str(own_data))
    assert done.returncode == 0, done.stderr
    assert f"{own_data}/corpora/wordnet" in done.stdout and f"{own_data}/taggers/{TAGGER}" in done.stdout
    assert not list(cache.iterdir()), "nothing was fetched"


def test_assets_cost_little_when_they_are_there(tell):
    """They are part of `make demo` and `make test`; what counts is the processor, whatever else the machine does."""
    place, before = fetch_language_data(), os.times()
    done = command("assets")
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 0 and str(place) in done.stdout
    tell("assets", "all is there", f"{seconds:.2f} s of the processor")
    assert seconds < 2


@pytest.mark.parametrize(("target", "first"), [("demo", "criteria_hpo.notebooks"), ("test", "pytest"), ("assets", None)])
def test_make_begins_with_the_assets(target, first):
    said = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    (at,) = [n for n, line in enumerate(said) if line.endswith("command=assets")]
    assert first is None or at < min(n for n, line in enumerate(said) if first in line)


def test_make_help_names_the_assets():
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "make assets " in said
