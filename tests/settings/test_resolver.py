"""Expids without a section: <Model>_<dataset>, resolved from class and data set."""

import json
from pathlib import Path

import pytest
import yaml

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.registry import find_model
from fuxictr_tf4ctr.settings.reading import list_expids, model_section, read_sections
from fuxictr_tf4ctr.settings.sections import resource_root
from fuxictr_tf4ctr.twin import TwinModel

CONFIG = resource_root() / "config"
BEFORE = json.loads((Path(__file__).parent / "resolved_before.json").read_text())


@pytest.fixture(scope="module")
def expids():
    return list_expids(CONFIG)


def test_every_experiment_once_written_out_resolves_to_the_same_settings(expids):
    """resolved_before.json holds what 22 files of sections gave the models."""
    datasets = read_sections(CONFIG, "dataset_config")
    assert len(BEFORE["experiments"]) == 328
    for expid, (model, dataset_id, own) in BEFORE["experiments"].items():
        expected = BEFORE["all"] | BEFORE["data_sets"][dataset_id] | BEFORE["models"][model] | own
        section = expids[expid]
        found = find_model(section["model"]).complete(section | datasets[dataset_id])
        found = json.loads(json.dumps(found))
        assert {key: found[key] for key in expected} == expected, expid
        assert found.keys() - expected.keys() <= TwinModel.defaults.keys(), expid


def write(folder: Path, models: str, datasets: str = "") -> Path:
    (folder / "model_config.yaml").write_text(models)
    if datasets:
        (folder / "dataset_config.yaml").write_text(datasets)
    return folder


COLUMNS = "feature_cols: [{name: [a, b], active: true, dtype: str, type: categorical}]"


def test_a_twin_and_its_base_model_on_a_data_set_of_ones_own(tmp_path):
    write(tmp_path, "Base: {epochs: 3}", f"mine: {{data_format: csv, {COLUMNS}}}")
    _, twin = model_section("TF4CTR_DCN_mine", tmp_path)
    assert twin["model"] == "TF4CTR_DCN" and twin["dataset_id"] == "mine" and twin["epochs"] == 3
    assert twin["simple_encoder"] == "cross_net" and "twin_focus" not in twin
    _, base = model_section("DCN_mine", tmp_path)
    assert base == twin | {"sample_selection": "none", "twin_focus": False, "fusion": "CF"}
    with pytest.raises(SettingsError, match="did you mean"):
        model_section("TF4CTR_DCN_mien", write(tmp_path, "mine: {dataset_id: mine}"))


def test_a_data_sets_section_a_delta_and_options_that_only_some_encoders_have(tmp_path):
    write(
        tmp_path,
        "mine: {dataset_id: d, c: 0.5, encoder_options: {complex_hidden_units: [8]}}\n"
        "more: {inherits: mine, c: 0.6}\n"
        "TF4CTR_DCN_mine: {simple_num_layers: 1}\n",
        f"d: {{data_format: csv, {COLUMNS}}}",
    )
    section = model_section("TF4CTR_DCN_mine", tmp_path)[1]
    assert (section["simple_num_layers"], section["complex_hidden_units"]) == (1, [8])
    assert "encoder_options" not in section
    section = model_section("TF4CTR_FCN_more", tmp_path)[1]
    assert section["c"] == 0.6 and "complex_hidden_units" not in section
    found = list_expids(tmp_path)
    assert {"TF4CTR_DCN_mine", "DCN_mine", "TF4CTR_more", "DualMLP_more"} <= found.keys()
    assert not [expid for expid in found if "DIN" in expid or "default" in expid]  # no sequence


def test_folders_that_inherit_sections_which_classes_have_replaced_still_run(tmp_path):
    write(
        tmp_path,
        "mine: {dataset_id: d, c: 0.5, encoder_options: {complex_hidden_units: [8]}}\n"
        "exp: {inherits: [mine, TF4CTR_DCNv2_default], complex_hidden_units: [4]}\n"
        "base: {inherits: [mine, EulerNet_default]}\n"
        "more: {inherits: TF4CTR_DCN_mine, c: 0.1}\n",
        f"d: {{data_format: csv, {COLUMNS}}}",
    )
    section = model_section("exp", tmp_path)[1]
    assert section["simple_encoder"] == "cross_net_v2" and section["complex_hidden_units"] == [4]
    section = model_section("base", tmp_path)[1]
    assert section["model"] == "TF4CTR_EulerNet" and section["twin_focus"] is False
    assert section["simple_encoder"] == "none" and "simple_hidden_units" not in section
    assert model_section("more", tmp_path)[1]["c"] == 0.1


def test_misspelt_options_are_not_lost(tmp_path):
    write(
        tmp_path,
        "mine: {dataset_id: d, encoder_options: {complex_hiden_units: [8]}}",
        f"d: {{data_format: csv, {COLUMNS}}}",
    )
    assert model_section("TF4CTR_mine", tmp_path)[1]["complex_hiden_units"] == [8]


@pytest.mark.parametrize("of", ["mine", "Base"])
def test_options_that_a_twins_defaults_would_replace_are_refused(tmp_path, of):
    sections = {"Base": {}, "mine": {"dataset_id": "d"}}
    sections[of]["complex_hidden_units"] = [8]
    datasets = f"d: {{data_format: csv, {COLUMNS}}}"

    def read(expid, **more):
        return model_section(expid, write(tmp_path, yaml.safe_dump(sections | more), datasets))[1]

    for expid in ("TF4CTR_mine", "DCNv2_mine"):
        said = f"replace complex_hidden_units in '{expid}': write it in encoder_options"
        with pytest.raises(SettingsError, match=said):
            read(expid)
    assert read("TF4CTR_mine", TF4CTR_mine={"complex_hidden_units": [4]}) == (
        read("exp", exp={"inherits": ["TF4CTR_default", "mine"], "complex_hidden_units": [4]})
    )
    assert "TF4CTR_mine" in list_expids(tmp_path)


def test_the_folder_says_no_more_than_it_must():
    """Classes hold the rest: no section of the packaged folder repeats what follows from them."""
    sections = yaml.safe_load((CONFIG / "model_config" / "datasets.yaml").read_text())
    assert not [name for name, section in sections.items() if "model" in section]
