"""Settings: FuxiCTR's files as they are, inheritance, and every mistake before data is read."""

import re
from pathlib import Path

import pytest
import yaml
from fuxictr.pytorch.models import BaseModel

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.settings.reading import list_expids, load_settings
from fuxictr_tf4ctr.settings.sections import resource_root

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


def test_fuxictrs_spellings_are_read(folder):
    model = {"embedding_regularizer": "l2(1.e-6)", "num_workers": 3}
    dataset = {"data_block_size": -1, "compression": "lzf", "test_data": ""}
    settings = load_settings("mine_exp", write(folder, model, dataset))
    assert settings["compression"] == "lzf" and settings["test_data"] is None


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
    "numbers of no ancestor": (
        {"refit_normalizers": True},
        "refit_normalizers is for continue_from",
    ),
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
    "the worst logloss": (
        {"monitor": "logloss"},
        "less logloss is better, but with weight 1 and monitor_mode: max the most is kept: "
        "set monitor_mode: min",
    ),
    "the worst AUC": (
        {"monitor": "AUC_simple", "monitor_mode": "min"},
        "more AUC_simple is better, but with weight 1 and monitor_mode: min the least is kept",
    ),
    "a part of the worst": (
        {"monitor": {"AUC": 1, "logloss": 1}},
        "less logloss is better, but with weight 1 and monitor_mode: max the most is kept: "
        "give it a negative weight",
    ),
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
    "used feature": (
        {"use_features": ["usr"]},
        "use_features: unknown feature 'usr'; did you mean 'user'",
    ),
    "specified feature": (
        {"feature_specs": [{"name": ["user", "itm"]}]},
        "feature_specs: unknown feature 'itm'; did you mean 'item'",
    ),
    "feature left out": (
        {"use_features": ["item"], "feature_specs": [{"name": "user"}]},
        "feature_specs: unknown feature 'user'; known: item",
    ),
    "gpu": ({"gpu": 99}, "gpu=99 does not exist"),
    "missing": ({"model": None}, "model is missing"),
    "activation": ({"hidden_activations": "rellu"}, "unknown activation 'rellu'; did you mean"),
    "one row": ({"batch_size": 1, "batch_norm": True}, "batch_size=1 leaves batch_norm one row"),
    "one row by default": (
        {"batch_size": 1, "model": "TF4CTR_FinalNet"},
        "leaves simple_batch_norm one row",
    ),
    "feature spec": (
        {"feature_specs": [{"name": "user", "embeding_dim": 8}]},
        "feature_specs[0]: unknown key 'embeding_dim'; did you mean 'embedding_dim'",
    ),
    "feature spec of encoding": (
        {"feature_specs": [{"name": "user", "min_categr_count": 2}]},
        "feature_specs[0]: unknown key 'min_categr_count'",
    ),
    "seed": ({"seed": 2**64}, "seed=18446744073709551616 must be a whole number from 0 to"),
    "regularizer's form": ({"net_regularizer": "l2(1.x)"}, "net_regularizer='l2(1.x)' must be"),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_the_model_section(folder, mistake, message):
    assert message in problems_of(folder, mistake)


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ({"AUC": 1, "logloss": 0}, "max"),
        ({"AUC": -1, "ece": 0.5}, "min"),
        ("binary_crossentropy", "min"),
        ("pcoc", "max"),
        ("pcoc", "min"),
    ],
)
def test_monitors_that_keep_the_best_or_have_no_direction(folder, monitor, mode):
    model = {"monitor": monitor, "monitor_mode": mode}
    assert load_settings("mine_exp", write(folder, model))["monitor"] == monitor


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
    "twice": ({"feature_cols": [column(), column()]}, "'user' is listed twice"),
    "share": ({"feature_cols": [column(share_embedding="item")]}, "share_embedding 'item'"),
    "no name": ({"feature_cols": [{"dtype": "str"}]}, "must be a mapping with a name"),
    "no columns": ({"feature_cols": None}, "feature_cols is missing"),
    "separator": ({"sep": ";;"}, "sep=';;' must be a single character"),
    "column key": ({"feature_cols": [column(embeding_dim=4)]}, "did you mean 'embedding_dim'"),
    "label": ({"label_col": {"name": "label", "dtype": "str"}}, "dtype must be int or float"),
    "two labels": (
        {"label_col": [{"name": n, "dtype": "float"} for n in ("a", "b")]},
        "label_col has 2 labels, but a twin predicts one",
    ),
    "processor": (
        {"feature_cols": [column(preprocess="convert_hour")]},
        "set feature_processor: fuxictr.datasets.avazu",
    ),
    "compression": ({"compression": "zip"}, "compression='zip' must be one of gzip, lzf or null"),
    "valid_size": ({"valid_size": 0.1}, "valid_size and valid_data are both given"),
    "no sizes": (
        {"split_type": "time", "split_by": "hour"},
        "split_type: time splits nothing off: give valid_size or test_size",
    ),
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


def test_a_file_given_as_the_folder_is_told(folder):
    file = write(folder) / "model_config.yaml"
    with pytest.raises(SettingsError, match=f"is a file: give the folder .*, {file.parent}$"):
        load_settings("mine_exp", file)


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
        ("x: " + "[" * 500, "nested deeper than 40 levels"),
        # libyaml 0.2.6 has a limit of its own, of 1,000.
        ("x: " + "[" * 10**5, "nested deeper than 40 levels|exceeded maximum nesting depth"),
        ("- " * 10**5, "nested deeper than 40 levels"),
        ("x: &a {y: *a}", "an alias inside of what it names"),
        (bomb(), "more than 2,000,000 values"),
        ("x: {a: 2026-13-41}", r"month must be in 1\.\.12"),
        ("x: {a: !!bool maybe}", "a value is not what its tag says"),
        ("x: {a: !!timestamp soon}", "a value is not what its tag says"),
        ('x: {a: !!int ""}', "a value is not what its tag says"),
        ("x: {a: %s}" % ("9" * 5000), "no valid YAML"),
        ("1: {a: 2}", "1 is no name; write it in quotes"),
        ("x: {1: 2}", "section 'x': 1 is no name; write it in quotes"),
        ("{[1]: 2}", "unhashable key"),
        ("x: {a: 1}\ny: {a: 2}\nx: {a: 3}", r"'x' is there twice, first in line 1(.|\n)*line 3"),
        ("x: {a: 1, b: [{c: 1, c: 1}]}", "'c' is there twice, first in line 1"),
        ("[1, 2]", "must hold sections"),
    ],
    ids=lambda value: value[:20],
)
def test_hostile_files_are_refused_before_anything_is_made_of_them(tmp_path, text, message):
    (tmp_path / "model_config.yaml").write_text(text)
    with pytest.raises(SettingsError) as error:
        list_expids(tmp_path)
    assert re.search(message, str(error.value)) and len(str(error.value)) < 1000


def test_tuples_are_read_as_plain_data(tmp_path):
    (tmp_path / "model_config.yaml").write_text(
        "x: {inherits: null, model: DIN, dataset_id: d, din_target_field: !!python/tuple [a, b]}"
    )
    assert list_expids(tmp_path)["x"]["din_target_field"] == ("a", "b")


def test_a_key_may_be_merged_over_and_given_again_after_null(tmp_path):
    (tmp_path / "model_config.yaml").write_text(
        "y: &y {inherits: null, model: DIN, dataset_id: d, seed: 1}\n"
        "x: &x {<<: *y, seed: 2, epochs: null, epochs: 3}\n"
        "z: {<<: *x, seed: 4}\n"
    )
    found = {
        name: (each["seed"], each.get("epochs")) for name, each in list_expids(tmp_path).items()
    }
    assert found == {"y": (1, None), "x": (2, 3), "z": (4, 3)}


def test_a_section_may_not_be_defined_twice(tmp_path):
    (tmp_path / "model_config").mkdir()
    for name in ("a", "b"):
        (tmp_path / "model_config" / f"{name}.yaml").write_text("x: {model: TF4CTR}\n")
    with pytest.raises(SettingsError, match="'x' is defined twice"):
        list_expids(tmp_path)


PAIRS = [("a", "b")]


class CrossModel(BaseModel):
    """Stands for FuxiCTR's models: some keys of its own, the rest for the base class."""

    def __init__(self, feature_map, num_cross_layers=3, dnn_hidden_units=(), pairs=PAIRS, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.optional = kwargs.get("bridge")


class OldLoss(CrossModel):
    """Written for FuxiCTR before 2.3.4."""

    def add_loss(self, inputs):
        return 0.0


CROSS = {"model": f"{__name__}:CrossModel"}


def test_old_names_of_keys_are_read_as_what_they_meant(folder):
    old = {"crossing_layers": 2, "hidden_units": [8], "patience": 5, "feature_config": None}
    settings = load_settings("mine_exp", write(folder, CROSS | old))
    assert settings["num_cross_layers"] == 2 and "crossing_layers" not in settings.params
    assert settings["dnn_hidden_units"] == (8,) and settings["early_stop_patience"] == 5
    assert settings.warnings == tuple(
        f"{old} is read as {now}, its present name"
        for old, now in (
            ("crossing_layers", "num_cross_layers"),
            ("hidden_units", "dnn_hidden_units"),
            ("patience", "early_stop_patience"),
        )
    )
    specs = [{"name": "user", "embedding_dim": 3}]
    for given in ({"feature_specs": None, "feature_config": specs}, {"feature_specs": specs}):
        settings = load_settings(
            "mine_exp", write(folder, CROSS | {"feature_config": None} | given)
        )
        assert [dict(spec) for spec in settings["feature_specs"]] == specs
    both = {"crossing_layers": 2, "num_cross_layers": 4}
    settings = load_settings("mine_exp", write(folder, CROSS | both))
    assert settings["num_cross_layers"] == 4 and any("no effect" in n for n in settings.warnings)


def test_keys_a_model_does_not_take_are_told(folder):
    keys = {"bridge": 1, "target_field": "item", "use_hdf5": True, "num_workers": 3}
    settings = load_settings("mine_exp", write(folder, CROSS | keys))
    assert settings.warnings == (
        "CrossModel takes no target_field: without effect",
        "without effect here: num_workers, use_hdf5",
    )
    for wrong in ("epohcs", "learning_rte", "num_cross_layer"):
        assert "did you mean" in problems_of(folder, CROSS | {wrong: 1})


def test_a_model_for_another_fuxictr_is_told(folder):
    said = "OldLoss.add_loss takes self, inputs, but FuxiCTR hands it self, return_dict, y_true"
    assert said in problems_of(folder, {"model": f"{__name__}:OldLoss"})


def test_groups_of_columns_are_tuples_however_written(folder):
    for written in ([["user", "item"]], [("user", "item")], ("user", "item")):
        params = CROSS | {"dataset_id": "mine", "pairs": written}
        config = write(folder)
        settings = load_settings("mine_exp", config, params)
        assert settings["pairs"] == [("user", "item")]


NAMES = ("model", "optimizer", "loss", "metrics", "monitor", "fusion", "sample_selection",
         "simple_encoder", "hidden_activations", "dataset_id", "train_data", "data_root",
         "feature_cols", "label_col", "use_features", "feature_specs", "group_id", "seed",
         "embedding_dim", "complex_hidden_units", "c", "twin_focus", "batch_norm", "gpu",
         "table_sharding", "batch_size", "eval_steps", "embedding_regularizer")  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [[], {}, [[]], [{}], {"a": []}, 10**400, -1, "x" * 300, "a/b\0"],
    ids=lambda value: str(value)[:9],
)
def test_any_key_may_hold_anything(folder, value):
    config = write(folder)
    for key in NAMES:
        try:
            load_settings("mine_exp", config, {key: value})
        except SettingsError as error:
            assert key in str(error) and len(str(error)) < 3000


def test_names_become_files(folder):
    config = write(folder)
    for expid in ("a/b", "x" * 300, 7, "..", "a\nb"):
        with pytest.raises(SettingsError, match="expid"):
            load_settings(expid, config)


def test_paths_are_found_beside_the_configuration_first(folder, monkeypatch):
    config = write(folder)
    (folder / "elsewhere" / "raw").mkdir(parents=True)
    (folder / "elsewhere" / "raw" / "train.csv").write_text("label,user,item,price\n")
    monkeypatch.chdir(folder / "elsewhere")
    settings = load_settings("mine_exp", config)
    assert settings["train_data"] == str(folder / "raw" / "train.csv")
    assert f"raw/train.csv is {settings['train_data']}" in settings.found
    assert settings["data_root"] == "encoded"  # made in the working directory
    (folder / "encoded" / "mine").mkdir(parents=True)
    (folder / "encoded" / "mine" / "feature_map.json").write_text("{}")
    assert load_settings("mine_exp", config)["data_root"] == str(folder / "encoded")
    (folder / "vectors.h5").touch()
    columns = [column(pretrained_emb="vectors.h5"), column(name="item")]
    settings = load_settings("mine_exp", write(folder, dataset={"feature_cols": columns}))
    assert settings["feature_cols"][0]["pretrained_emb"] == str(folder / "vectors.h5")


def test_models_that_need_a_loader_of_their_own(folder):
    assert "LongCTR/run_expid.py" in problems_of(folder, {"model": "LongCTR.DIN"})


def test_packaged_experiments_are_valid_but_for_their_data():
    """Only missing data files may keep one from running; every model and every data set is here."""
    packaged = resource_root() / "config"
    sections = list_expids(packaged)
    expids = list(sections)[::7]
    for key in ("model", "dataset_id"):
        assert {sections[e][key] for e in expids} == {each[key] for each in sections.values()}
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
