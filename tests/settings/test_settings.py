"""Settings: FuxiCTR's files as they are, inheritance, and every mistake before data is read."""

from pathlib import Path

import pytest
import yaml

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.settings.reading import list_expids, load_settings
from fuxictr_tf4ctr.settings.resources import resource_root

DATASET = {
    "data_root": "./encoded/",
    "data_format": "csv",
    "train_data": "raw/train.csv",
    "valid_data": "raw/valid.csv",
    "test_data": None,
    "min_categr_count": 1,
    "feature_cols": [
        {"name": ["user", "item"], "active": True, "dtype": "str", "type": "categorical"},
        {"name": "price", "active": True, "dtype": "float", "type": "numeric"},
    ],
    "label_col": {"name": "label", "dtype": "float"},
}
MODEL = {
    "model": "TF4CTR_DCNv2",
    "dataset_id": "mine",
    "metrics": ["AUC", "logloss"],
    "learning_rate": 1e-3,
    "batch_size": 10,
    "epochs": 1,
}


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    """A working directory with raw files and a function that writes its configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FUXICTR_DATA", raising=False)
    (tmp_path / "raw").mkdir()
    for split in ("train", "valid"):
        (tmp_path / "raw" / f"{split}.csv").write_text("label,user,item,price\n1,a,b,2\n")
    return tmp_path


def write(folder: Path, model=None, dataset=None, base=None) -> Path:
    config = folder / "my_config"
    config.mkdir(exist_ok=True)
    sections = {"mine_exp": MODEL | (model or {})}
    if base:
        sections["Base"] = base
    (config / "model_config.yaml").write_text(yaml.safe_dump(sections))
    (config / "dataset_config.yaml").write_text(yaml.safe_dump({"mine": DATASET | (dataset or {})}))
    return config


def problems_of(folder, model=None, dataset=None, **overrides) -> str:
    with pytest.raises(SettingsError) as error:
        load_settings("mine_exp", write(folder, model, dataset), overrides)
    return str(error.value)


def test_fuxictrs_files_and_precedence(folder):
    config = write(folder, base={"epochs": 7, "seed": 5, "verbose": 0})
    settings = load_settings("mine_exp", config, {"batch_size": 99})
    assert settings["epochs"] == 1  # the experiment wins over Base
    assert settings["seed"] == 5
    assert settings["batch_size"] == 99  # what the user sets wins over all
    assert settings["optimizer"] == "adam"  # defaults fill the rest
    assert settings["train_data"] == str(folder / "raw" / "train.csv")
    assert settings["test_data"] is None
    assert settings["model_id"] == "mine_exp"
    with pytest.raises(TypeError):
        settings.params["epochs"] = 3


def test_text_numbers_become_numbers(folder):
    settings = load_settings(
        "mine_exp", write(folder, {"learning_rate": "1e-3", "embedding_regularizer": 1})
    )
    assert settings["learning_rate"] == 1e-3
    assert isinstance(settings["embedding_regularizer"], float)  # FuxiCTR ignores whole numbers


def test_inheritance(tmp_path):
    (tmp_path / "model_config").mkdir()
    (tmp_path / "model_config" / "a.yaml").write_text(
        "Base: {epochs: 3}\nsmall: {batch_size: 5, seed: 1}\n"
        "dcn: {model: TF4CTR_DCN, batch_size: 7}\n"
    )
    (tmp_path / "model_config" / "b.yaml").write_text(
        "exp: {inherits: [small, dcn], dataset_id: d, seed: 2}\nloop: {inherits: loop}\n"
    )
    with pytest.raises(SettingsError, match="loop inherits loop"):
        list_expids(tmp_path)
    (tmp_path / "model_config" / "b.yaml").write_text(
        "exp: {inherits: [small, dcn], dataset_id: d, seed: 2}\n"
    )
    assert list_expids(tmp_path) == {
        "exp": {"epochs": 3, "batch_size": 7, "seed": 2, "model": "TF4CTR_DCN", "dataset_id": "d"}
    }
    (tmp_path / "model_config" / "b.yaml").write_text("exp: {inherits: smal}\n")
    with pytest.raises(SettingsError, match=r"'exp' inherits an unknown section 'smal'.*'small'"):
        list_expids(tmp_path)


MISTAKES = {
    "unknown key": (
        {"learning_rat": 1},
        "'learning_rat'; did you mean 'learning_rate'",
    ),
    "encoder option": ({"simple_num_layer": 1}, "did you mean 'simple_num_layers'"),
    "model": ({"model": "TF4CTR_DCN2"}, "unknown model 'TF4CTR_DCN2'; did you mean"),
    "metric": ({"metrics": ["AUCC"]}, "metrics[0]: unknown metric 'AUCC': did you mean AUC"),
    "monitor": ({"monitor": {"AUC": 1, "loglos": -1}}, "monitor: unknown metric 'loglos'"),
    "monitor weight": (
        {"monitor": {"AUC": "x"}},
        "monitor={'AUC': 'x'} must be a mapping of metrics to weights",
    ),
    "switch": ({"cuda_graphs": True}, "cuda_graphs needs a GPU: set gpu"),
    "precision": ({"precision": "fp16"}, "precision='fp16' must be one of fp32, tf32, bf16"),
    "mode": ({"monitor_mode": "maximum"}, "monitor_mode='maximum' must be one of max, min"),
    "optimizer": ({"optimizer": "Adagard"}, "unknown optimizer 'Adagard'; did you mean 'Adagrad'"),
    "loss": ({"loss": "focal"}, "loss='focal' must be one of binary_crossentropy"),
    "type": ({"epochs": "ten"}, "epochs='ten' must be a whole number >= 1"),
    "c": ({"c": 2}, "c=2 must be a number in [0, 1]"),
    "odd dim": ({"embedding_dim": 9}, "embedding_dim=9 must be even"),
    "units": ({"complex_hidden_units": []}, "complex_hidden_units=[] must be a non-empty list"),
    "regularizer": ({"embedding_regularizer": "l3(1)"}, "embedding_regularizer='l3(1)'"),
    "eval_steps": ({"eval_steps": 1.5}, "eval_steps=1.5 must be"),
    "group": ({"metrics": ["gAUC"]}, "metric gAUC needs group_id"),
    "stream of a plain model": (
        {"model": "LongCTR.TransAct", "metrics": ["AUC_simple"]},
        "metric AUC_simple needs a model that",
    ),
    "stream without heads": (
        {"monitor": "AUC_complex", "twin_focus": False},
        "metric AUC_complex needs a model that",
    ),
    "unknown stream": ({"metrics": ["AUC_easy"]}, "did you mean AUC_simple"),
    "group column": ({"group_id": "usr"}, "unknown column 'usr'; did you mean 'user'"),
    "gpu": ({"gpu": 99}, "gpu=99 does not exist"),
    "missing": ({"model": None}, "model is missing"),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_the_model_section(folder, mistake, message):
    assert message in problems_of(folder, mistake)


def column(**changes):
    return {"name": "user", "active": True, "dtype": "str", "type": "categorical"} | changes


DATA_MISTAKES = {
    "format": ({"data_format": "xls"}, "data_format='xls' must be one of csv, parquet"),
    "file": ({"train_data": "raw/trian.csv"}, "data/README.md"),
    "dtype": ({"feature_cols": [column(dtype="__import__('os')")]}, "dtype"),
    "type": ({"feature_cols": [column(type="catgorical")]}, "did you mean 'categorical'"),
    "encoder": (
        {"feature_cols": [column(type="sequence", feature_encoder="__import__('os').getcwd()")]},
        "feature_encoder",
    ),
    "twice": ({"feature_cols": [column(), column()]}, "'user' is there twice"),
    "share": ({"feature_cols": [column(share_embedding="item")]}, "share_embedding 'item'"),
    "no name": ({"feature_cols": [{"dtype": "str"}]}, "feature_cols[0].name is missing"),
    "no columns": ({"feature_cols": None}, "feature_cols is missing"),
    "valid_size": ({"valid_size": 0.1}, "valid_size and valid_data are both given"),
}


@pytest.mark.parametrize(("mistake", "message"), DATA_MISTAKES.values(), ids=DATA_MISTAKES)
def test_mistakes_in_the_dataset_section(folder, mistake, message):
    assert message in problems_of(folder, dataset=mistake)


def test_all_problems_come_at_once(folder):
    text = problems_of(
        folder, {"c": 2, "epoch": 3, "optimizer": "Adagard"}, {"train_data": "nowhere.csv"}
    )
    assert text.count("\n- ") == 4


def test_missing_files_say_where_they_were_looked_for(folder, monkeypatch):
    monkeypatch.setenv("FUXICTR_DATA", str(folder / "elsewhere"))
    text = problems_of(folder, dataset={"train_data": "data/mine/train.csv"})
    for place in ("data/mine", "elsewhere/mine"):
        assert str(folder / place / "train.csv") in text


def test_data_may_lie_in_the_named_folder(folder, monkeypatch):
    monkeypatch.setenv("FUXICTR_DATA", str(folder / "raw"))
    settings = load_settings("mine_exp", write(folder, dataset={"train_data": "data/train.csv"}))
    assert settings["train_data"] == str(folder / "raw" / "train.csv")


def test_unknown_expids_and_templates(folder):
    config = write(folder)
    with pytest.raises(SettingsError, match="did you mean mine_exp"):
        load_settings("mine_expp", config)
    with pytest.raises(SettingsError, match="template"):
        load_settings("mine_exp", write(folder, {"dataset_id": "TBD"}))
    with pytest.raises(SettingsError, match="unknown dataset_id 'mien'; did you mean 'mine'"):
        load_settings("mine_exp", write(folder, {"dataset_id": "mien"}))


def test_broken_files(tmp_path):
    with pytest.raises(SettingsError, match="does not exist"):
        load_settings("x", tmp_path / "nowhere")
    with pytest.raises(SettingsError, match=r"neither model_config.yaml nor model_config/\*.yaml"):
        load_settings("x", tmp_path)
    (tmp_path / "model_config.yaml").write_text("x: {a: 1\n")
    with pytest.raises(SettingsError, match="no valid YAML"):
        load_settings("x", tmp_path)
    (tmp_path / "model_config.yaml").write_text("x: 3\n")
    with pytest.raises(SettingsError, match="section 'x' must be a mapping"):
        load_settings("x", tmp_path)
    (tmp_path / "model_config.yaml").write_text("x: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(SettingsError, match="no valid YAML"):
        load_settings("x", tmp_path)


def bomb() -> str:
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(["l0: &l0 [1]", *levels])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: " + "[" * 10**5, "nested deeper than 40 levels"),
        ("- " * 10**5, "nested deeper than 40 levels"),
        ("x: &a {y: *a}", "an alias inside of what it names"),
        (bomb(), "more than 2,000,000 values"),
        ("x: {a: 2026-13-41}", "month must be in 1..12"),
        ("x: {a: %s}" % ("9" * 5000), "no valid YAML"),
        ("1: {a: 2}", "1 is no name; write it in quotes"),
        ("x: {1: 2}", "section 'x': 1 is no name; write it in quotes"),
        ("{[1]: 2}", "unhashable key"),
        ("[1, 2]", "must hold sections"),
    ],
    ids=lambda value: value[:20],
)
def test_hostile_files_are_refused_before_anything_is_made_of_them(tmp_path, text, message):
    (tmp_path / "model_config.yaml").write_text(text)
    with pytest.raises(SettingsError) as error:
        list_expids(tmp_path)
    assert message in str(error.value) and len(str(error.value)) < 1000


def test_tuples_are_read_as_plain_data(tmp_path):
    (tmp_path / "model_config.yaml").write_text(
        "x: {inherits: null, model: DIN, dataset_id: d, din_target_field: !!python/tuple [a, b]}"
    )
    assert list_expids(tmp_path)["x"]["din_target_field"] == ("a", "b")


def test_a_section_may_not_be_defined_twice(tmp_path):
    (tmp_path / "model_config").mkdir()
    for name in ("a", "b"):
        (tmp_path / "model_config" / f"{name}.yaml").write_text("x: {model: TF4CTR}\n")
    with pytest.raises(SettingsError, match="'x' is defined twice"):
        list_expids(tmp_path)


def test_unknown_keys_of_fuxictrs_models_are_theirs(folder):
    model = {"model": "fuxictr.pytorch.models:BaseModel", "target_field": "item"}
    settings = load_settings("mine_exp", write(folder, model))
    assert settings["target_field"] == "item"


def test_models_that_need_a_loader_of_their_own(folder):
    assert "LongCTR/run_expid.py" in problems_of(folder, {"model": "LongCTR.DIN"})


def test_every_packaged_experiment_is_valid_but_for_its_data():
    """Only missing data files may keep a packaged experiment from running."""
    packaged = resource_root() / "config"
    expids = list_expids(packaged)
    assert len(expids) >= 84
    for expid in expids:
        try:
            load_settings(expid, packaged)
        except SettingsError as error:
            lines = str(error).splitlines()
            assert len(lines) == 2 and "is not there" in lines[1], error


def test_encoders_that_the_columns_do_not_suit(folder):
    columns = [column(embedding_dim=4), column(name="item")]
    text = problems_of(folder, {"model": "TF4CTR_DeepFM"}, {"feature_cols": columns})
    assert "simple_encoder 'fm' needs one embedding_dim for all fields, but user" in text
    text = problems_of(folder, {"model": "TF4CTR_DIN"})
    assert "needs a feature column of type sequence" in text


def test_one_misspelt_encoder_does_not_hide_other_problems(folder):
    text = problems_of(folder, {"simple_encoder": "cros_net", "epochs": 0, "epoch": 3})
    for message in ("did you mean 'cross_net'", "epochs=0", "unknown key 'epoch'"):
        assert message in text
