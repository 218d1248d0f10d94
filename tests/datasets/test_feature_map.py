"""Loading the feature map: FuxiCTR's, corrected, and its errors found first."""

import json

import pytest

from fuxictr_tf4ctr.datasets import load_feature_map
from fuxictr_tf4ctr.errors import DataError, SettingsError

PARAMS = {"dataset_id": "made", "embedding_dim": 4, "label_col": {"name": "click"}}
SPECS = {
    "user": {"source": "", "type": "categorical", "padding_idx": 0, "vocab_size": 9},
    "item": {"source": "", "type": "categorical", "padding_idx": 0, "vocab_size": 5},
    "session": {"type": "meta"},
}


def write(folder, **replaced):
    features = [{name: spec} for name, spec in SPECS.items()]
    content = {"dataset_id": "made", "labels": ["click"], "features": features} | replaced
    (folder / "feature_map.json").write_text(json.dumps(content))
    return folder


def test_what_the_parameters_ask_for_is_in_the_map(tmp_path):
    params = PARAMS | {
        "group_id": "session",
        "use_features": ["item", "session"],
        "feature_specs": [{"name": "item", "feature_encoder": "nn.Linear(4, 4)"}],
    }
    feature_map = load_feature_map(write(tmp_path), params)
    assert list(feature_map.features) == ["item", "session"]
    assert feature_map.features["item"]["feature_encoder"] == "nn.Linear(4, 4)"
    assert (feature_map.group_id, feature_map.default_emb_dim) == ("session", 4)
    assert feature_map.data_dir == str(tmp_path)
    # FuxiCTR says 2 here: it counts before it leaves user out.
    assert feature_map.num_fields == 1


def test_a_fuxictr_1_map_is_converted(tmp_path):
    specs = {
        "user": {"source": "", "type": "categorical", "vocab_size": 9, "index": 0},
        "item": {"type": "categorical", "padding_idx": 4, "vocab_size": 5, "index": 1},
    }
    content = {"dataset_id": "made", "num_fields": 2, "num_features": 14, "feature_specs": specs}
    text = json.dumps(content)
    (tmp_path / "feature_map.json").write_text(text)
    feature_map = load_feature_map(tmp_path, PARAMS)
    assert (feature_map.num_fields, feature_map.total_features) == (2, 14)
    assert feature_map.labels == ["click"] and feature_map.data_dir == str(tmp_path)
    assert "padding_idx" not in feature_map.features["item"]
    assert (tmp_path / "feature_map.json").read_text() == text
    with pytest.raises(SettingsError, match="label_col is missing"):
        load_feature_map(tmp_path, {"dataset_id": "made"})


def test_a_fuxictr_1_sequence_is_refused(tmp_path):
    specs = {"clicks": {"type": "sequence", "padding_idx": 4, "vocab_size": 5, "max_len": 2}}
    content = {"dataset_id": "made", "feature_specs": specs}
    (tmp_path / "feature_map.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="cannot use feature 'clicks' of a FuxiCTR 1"):
        load_feature_map(tmp_path, PARAMS)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"use_features": ["usr"]}, "use_features: unknown feature 'usr'; did you mean 'user'"),
        ({"feature_specs": [{"name": ["user", "itm"]}]}, "feature_specs: unknown feature 'itm'"),
        ({"group_id": "sesion"}, "group_id: unknown feature 'sesion'; did you mean 'session'"),
        ({"feature_specs": [{"name": "user", "feature_encoder": "exit()"}]}, "'exit.* must read"),
    ],
)
def test_wrong_parameters_are_named(tmp_path, params, message):
    with pytest.raises(SettingsError, match=message):
        load_feature_map(write(tmp_path), PARAMS | params)


def test_code_in_the_file_is_refused(tmp_path):
    spec = {"type": "categorical", "vocab_size": 9, "feature_encoder": "__import__('os')"}
    with pytest.raises(SettingsError, match=r"feature_map\.json: user: feature_encoder"):
        load_feature_map(write(tmp_path, features=[{"user": spec}]), PARAMS)


BAD_MAPS = {
    "no list": ({"features": True}, "features=True must be a non-empty list"),
    "no type": ({"features": [{"a": {}}]}, r"features\[0\]\.a\.type is missing"),
    "no size": ({"features": [{"a": {"type": "categorical"}}]}, "a.vocab_size is missing"),
    "absurd size": (
        {"features": [{"a": {"type": "categorical", "vocab_size": 10**15}}]},
        "vocab_size=1000000000000000 must be a whole number from 1 to 2147483647",
    ),
    "labels": ({"labels": 3}, "labels=3 must be a list of texts"),
    "twice": ({"labels": ["user"]}, "'user' is there twice"),
}


@pytest.mark.parametrize(("change", "message"), BAD_MAPS.values(), ids=BAD_MAPS)
def test_wrong_values_are_named_with_file_and_key(tmp_path, change, message):
    with pytest.raises(DataError, match=rf"feature_map\.json: .*{message}"):
        load_feature_map(write(tmp_path, **change), PARAMS)


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"feature_map\.json: missing"):
        load_feature_map(tmp_path, PARAMS)
    with pytest.raises(DataError, match="made for dataset_id 'other'"):
        load_feature_map(write(tmp_path, dataset_id="other"), PARAMS)
    for text, message in (('{"dataset_id"', "cannot be read as JSON"), ("[]", "must be a mapping")):
        (tmp_path / "feature_map.json").write_text(text)
        with pytest.raises(DataError, match=message):
            load_feature_map(tmp_path, PARAMS)
