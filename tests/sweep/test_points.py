"""Tuner files: FuxiCTR's enumeration and names, its lost experiments found, mistakes named."""

import ast
import csv
import math

import pytest
import yaml
from helpers import SHARED
from small_sweep import DATASET, write_project, write_tuner

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.sweep.folder import SweepFolder
from fuxictr_tf4ctr.sweep.points import grid, grid_size
from fuxictr_tf4ctr.sweep.tuner_file import Range, read_space, read_tuner


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FUXICTR_DATA", raising=False)
    return write_project(tmp_path)


def fuxictr_enumerates(file):
    """What FuxiCTR's own tuner makes of the file: expid -> section, and its data set ids."""
    from fuxictr.autotuner import enumerate_params

    made = enumerate_params(str(file))
    with open(f"{made}/model_config.yaml") as models, open(f"{made}/dataset_config.yaml") as data:
        return yaml.safe_load(models), yaml.safe_load(data)


@pytest.mark.parametrize("inline", [False, True], ids=["data set of base_config", "inline"])
def test_names_and_order_are_fuxictrs(folder, inline):
    space = {
        "c": [0.5, 0.9],
        "learning_rate": 1e-3,
        "min_categr_count": 2,
        "embedding_dim": [4, 8, 16],
    }
    # FuxiCTR knows only keys that the base experiment has.
    write_project(folder, model={"learning_rate": 1e-2})
    more = {"dataset_config": {"mine": DATASET}} if inline else {}
    file = write_tuner(folder, space, **more)
    models, datasets = fuxictr_enumerates(file)
    points = list(grid(read_tuner(file)))
    assert grid_size(read_tuner(file)) == len(points) == 6
    assert [point.expid for point in points] == sorted(models)
    assert {point.dataset_id for point in points} == set(datasets)
    for point in points:
        assert {key: models[point.expid][key] for key in point.model} == point.model
        assert point.settings["min_categr_count"] == point.values["min_categr_count"]
        assert point.settings["c"] == point.values["c"]


def test_encoded_data_keep_their_name_and_are_found_from_the_folder_of_the_sweep(
    folder, tmp_path_factory, monkeypatch
):
    encoded = folder / "encoded" / "mine"
    encoded.mkdir(parents=True)
    (encoded / "feature_map.json").write_text("{}")
    (encoded / "train.parquet").touch()
    (encoded / "item.npz").touch()
    columns = [
        {**DATASET["feature_cols"][0], "name": "item", "pretrained_emb": "encoded/mine/item.npz"}
    ]
    paths = dict.fromkeys(("train_data", "valid_data", "test_data"), "encoded/mine/train.parquet")
    given = {"data_format": "parquet", "feature_cols": None, **paths}
    write_project(folder, dataset=given)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    file = write_tuner(folder, {"c": [0.5, 0.9]})
    assert {point.dataset_id for point in grid(read_tuner(file))} == {"mine"}
    write_project(folder, dataset=given | {"feature_cols": columns, "rebuild_dataset": False})
    sweep = SweepFolder(folder / "sweeps" / "grid", "grid")
    sweep.path.mkdir(parents=True)
    sweep.write_config(grid(read_tuner(file)))
    (written,) = yaml.safe_load((sweep.config / "dataset_config.yaml").read_text()).values()
    assert written["data_root"] == str(folder / "encoded")
    assert written["feature_cols"][0]["pretrained_emb"] == str(encoded / "item.npz")
    assert written["train_data"] == str(encoded / "train.parquet")


def test_what_fuxictr_loses_to_equal_hashes_is_kept(folder):
    """Two data sets whose settings have the same characters get one name there, two here."""
    file = write_tuner(folder, {"min_categr_count": [12, 21], "simple_hidden_units": [[42], [24]]})
    _, datasets = fuxictr_enumerates(file)
    assert len(datasets) == 1
    points = list(grid(read_tuner(file)))
    assert len({point.expid for point in points}) == 4
    assert len({point.dataset_id for point in points}) == 2
    ends = [point.expid[-8:] for point in points]
    assert len(set(ends)) == 4  # [42] and [24] too
    assert points[0].dataset_id in datasets


def test_data_sets_vary_innermost(folder):
    """FuxiCTR's order; its own tuner stops with a KeyError at the second data set."""
    file = write_tuner(folder, {"min_categr_count": [1, 2], "c": [0.5, 0.9]})
    values = [tuple(point.values.values()) for point in grid(read_tuner(file))]
    assert values == [(0.5, 1), (0.5, 2), (0.9, 1), (0.9, 2)]
    with pytest.raises(KeyError, match="model_id"):
        fuxictr_enumerates(file)


def test_expids_do_not_depend_on_what_else_is_swept(folder):
    alone = next(grid(read_tuner(write_tuner(folder, {"c": [0.5]}))))
    first = next(grid(read_tuner(write_tuner(folder, {"c": [0.5, 0.7, 0.9]}))))
    assert alone.expid == first.expid


def test_a_point_that_comes_twice_runs_once(folder):
    points = list(grid(read_tuner(write_tuner(folder, {"c": [0.5, 0.9, 0.5]}))))
    assert [point.values["c"] for point in points] == [0.5, 0.9]


def test_one_bad_value_is_the_problem_of_its_points_alone(folder):
    points = list(grid(read_tuner(write_tuner(folder, {"c": [0.5, 3], "gamma": [1, 2]}))))
    assert [bool(point.problem) for point in points] == [False, False, True, True]
    assert "c=3 must be a number in [0, 1]" in points[2].problem


def test_runs_of_one_process_have_nobody_to_divide_tables_with(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    space = {"table_sharding": [None, "auto"], "embedding_regularizer": [0]}
    whole, divided = grid(read_tuner(write_tuner(folder, space)))
    assert whole.problem is None
    assert "table_sharding divides tables among workers" in divided.problem


def test_a_data_set_that_is_encoded_already_keeps_its_name(folder):
    write_project(folder, dataset={"data_format": "h5", "min_categr_count": 1})
    assert next(grid(read_tuner(write_tuner(folder, {"c": [0.5]})))).dataset_id == "mine"
    with pytest.raises(SettingsError, match="encoded already"):
        list(grid(read_tuner(write_tuner(folder, {"min_categr_count": [1, 2]}))))


MISTAKES = {
    "unknown key": ({"space": {"fuson": ["WSF"]}}, "unknown key 'fuson'; did you mean 'fusion'"),
    "empty list": ({"space": {"c": []}}, "c is an empty list"),
    "range of nothing": ({"space": {"c": {"low": 1, "high": 1}}}, "low (1) must be below high"),
    "no number": ({"space": {"c": {"low": float("nan"), "high": 1}}}, "must be numbers"),
    "text as number": ({"space": {"c": {"low": "1e-3", "high": 1}}}, "must be numbers"),
    "log of zero": ({"space": {"c": {"low": 0, "high": 1, "log": True}}}, "log needs low above 0"),
    "no space": ({"space": {}}, "tuner_space must map"),
    "dataset_id in the space": ({"space": {"dataset_id": ["a", "b"]}}, "on one dataset_id"),
    "unknown experiment": ({"space": {"c": [1]}, "base_expid": "min_exp"}, "mine_exp"),
    "unknown data set": ({"space": {"c": [1]}, "dataset_id": "mne"}, "'mine'"),
    "weights of no loss": (
        {"space": {"twin_focus": False, "alpha": {"low": 0, "high": 1}, "c": [0.5]}},
        "alpha without effect: mine_exp has no Twin Focus Loss; for a base model leave out",
    ),
    "no folder": ({"space": {"c": [1]}, "base_config": "./cfg/"}, "base_config ./cfg/"),
    "misspelt section": ({"space": {"c": [1]}, "tuner_spce": {}}, "did you mean 'tuner_space'"),
}


@pytest.mark.parametrize(("content", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named_with_what_was_meant(folder, content, message):
    with pytest.raises(SettingsError) as error:
        read_tuner(write_tuner(folder, **content))
    assert message in str(error.value)


def test_ranges_are_no_grid(folder):
    space = read_space({"c": {"low": 0.1, "high": 1}, "n": {"low": 1, "high": 4}, "m": 3}, "file")
    assert space == {"c": Range(0.1, 1), "n": Range(1, 4), "m": [3]}
    assert [space["c"].whole, space["n"].whole] == [False, True]
    with pytest.raises(SettingsError, match="--search tpe"):
        grid_size(read_tuner(write_tuner(folder, {"c": {"low": 0.1, "high": 1}})))


def test_one_grid_for_any_experiment(folder, monkeypatch):
    """authors.yaml names no experiment and no folder: --expid does, the package's are found."""
    authors = "config/tuner/authors.yaml"
    with pytest.raises(SettingsError, match="names no base_expid: say by --expid"):
        read_tuner(authors)
    tuner = read_tuner(authors, expid="TF4CTR_FCN_frappe")
    assert (tuner.base_expid, tuner.dataset_id) == ("TF4CTR_FCN_frappe", "frappe_x1")
    assert tuner.model["model"] == "TF4CTR_FCN" and grid_size(tuner) == 72
    recommended = read_tuner("config/tuner/recommended.yaml", expid="TF4CTR_FCN_demo")
    assert recommended.shared["monitor"] == {"AUC": 1, "logloss": -1}
    assert yaml.safe_load(tuner.text)["base_expid"] == "TF4CTR_FCN_frappe"  # the sweep keeps which
    monkeypatch.chdir(folder)  # ./config comes first, as for every command
    assert read_tuner(authors, expid="mine_exp").config_dir == folder / "config"
    file = write_tuner(folder, {"c": [0.5]}, base_expid="other", dataset_id="other")
    assert read_tuner(file, expid="mine_exp").dataset_id == "mine"


def test_a_twins_keys_are_refused_around_a_base_model_unless_its_loss_varies(folder):
    with pytest.raises(SettingsError, match="c, alpha without effect: DCNv2_demo has no Twin"):
        read_tuner("config/tuner/recommended.yaml", expid="DCNv2_demo")
    read_tuner(write_tuner(folder, {"twin_focus": [False, True], "c": [0.5, 0.9]}))


def test_a_removed_tuner_file_says_what_to_write():
    with pytest.raises(SettingsError) as error:
        read_tuner("config/tuner/TF4CTR_DCNv2.yaml")
    assert "config/tuner/authors.yaml --expid TF4CTR_DCNv2_frappe" in str(error.value)


# The authors' files ------------------------------------------------------------------------------

# Where author_runs.csv has a model key of another name.
AUTHORS_KEYS = {
    "sample_selection": "SSM",
    "fusion": "DFM",
    "simple_hidden_units": "easy_hidden_units",
    "complex_hidden_units": "hard_hidden_units",
}


def published_frappe_runs():
    file = SHARED / "reference" / "author_runs.csv"
    if not file.exists():
        pytest.skip(f"no published runs at {file}")
    with file.open() as rows:
        return [
            row
            for row in csv.DictReader(rows)
            if row["dataset"] == "Frappe_x1" and row["model"] == "TF4CTRv2"
        ]


def authors_section(run):
    section = {
        "model": run["model"],
        "dataset_id": "TBD",
        "metrics": ["logloss", "AUC"],
        "monitor": ast.literal_eval(run["monitor"]),
        "group_id": "user",
    }
    numbers = ("alpha", "c", "gamma", "embedding_dim", "embedding_regularizer", "net_dropout")
    for key in (*numbers, "batch_norm", "batch_size", "learning_rate", "seed", *AUTHORS_KEYS):
        value = run[key]
        plain = key in ("sample_selection", "fusion")
        section[AUTHORS_KEYS.get(key, key)] = value if plain else yaml.safe_load(value)
    return section


def test_the_published_frappe_settings_enumerate(folder):
    """A grid in the authors' spelling over all they published on Frappe: each run is a point."""
    runs = published_frappe_runs()
    sections = [authors_section(run) for run in runs]
    space = {}
    for key in sections[0].keys() - {"monitor"}:
        values = [section[key] for section in sections]
        different = [value for i, value in enumerate(values) if value not in values[:i]]
        if len(different) > 1:
            space[key] = different
    base = {"TF4CTRv2_Frappe": sections[0] | {"dataset_id": "mine"}}
    file = write_tuner(folder, space, base_expid="TF4CTRv2_Frappe", model_config=base)
    points = list(grid(read_tuner(file)))
    assert len(points) == math.prod(map(len, space.values()))
    assert {point.problem for point in points} == {None}
    assert points[0].expid.startswith("TF4CTRv2_Frappe_001_")
    found = [point.values for point in points]
    for section in sections:
        values = {key: section[key] for key in space}
        point = points[found.index(values)]
        assert point.model["model"] == "TF4CTR"
        assert point.settings["simple_hidden_units"] == section["easy_hidden_units"]
        assert point.settings["fusion"] == {"none": "sum"}.get(section["DFM"], section["DFM"])


def test_an_authors_file_without_its_experiment_varies_ours(folder, monkeypatch):
    """They published the tuner files, not the experiments these vary."""
    space = {
        "monitor": {"AUC": 1, "logloss": 0},
        "metrics": [["logloss", "AUC"]],
        "SSM": ["SER", "none"],
        "DFM": ["WSF", "none"],
        "easy_hidden_units": [[400], [800]],
    }
    sets = {"dataset_config": {"mine": DATASET}}
    file = write_tuner(folder, space, base_expid="TF4CTRv2_Frappe", **sets)
    points = list(grid(read_tuner(file)))
    assert [point.problem for point in points] == [None] * 8
    assert {point.settings["sample_selection"] for point in points} == {"SER", "none"}
    assert {point.settings["fusion"] for point in points} == {"WSF", "sum"}
    assert points[0].settings["complex_hidden_units"] == [400, 400, 400]
    # A DeepFM twin has no simple MLP: the authors' tuner varied a key that their model ignored.
    file = write_tuner(folder, space, base_expid="TF4CTRv2_DeepFM_Frappe", **sets)
    points = list(grid(read_tuner(file)))
    assert len(points) == 4
    assert {point.model["model"] for point in points} == {"TF4CTR_DeepFM"}


def test_fuxictrs_own_file_has_its_data_set_beside_the_other_keys(folder):
    file = write_tuner(folder, {"c": [0.5]}, dataset_id="other", other=DATASET)
    (point,) = grid(read_tuner(file))
    assert point.problem is None and point.dataset_id.startswith("other_")
    file = write_tuner(folder, {"c": [0.5]}, other=DATASET)
    with pytest.raises(SettingsError, match="unknown key 'other'"):
        read_tuner(file)


def test_a_folder_that_lists_its_experiments_is_taken_as_it_is(folder):
    """What FuxiCTR's tuner and BARS keep of a tuner file."""
    from fuxictr.autotuner import enumerate_params

    write_project(folder, model={"learning_rate": 1e-2})
    made = enumerate_params(str(write_tuner(folder, {"c": [0.5, 0.9]}, name="all.1")))
    tuner = read_tuner(made)
    points = list(grid(tuner))
    assert tuner.name == "all.1" and grid_size(tuner) == 2
    assert [point.values for point in points] == [{"c": 0.5}, {"c": 0.9}]
    assert [point.expid for point in points] == list(tuner.listed)
    assert not any(point.problem for point in points)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"tuner_space": [1]}, "tuner_space=[1] must be a mapping"),
        ({"model_config": [1]}, "model_config=[1] must be a mapping or null"),
        ({"dataset_config": {"mine": 3}}, "dataset_config.mine=3 must be a mapping"),
        ({"base_expid": ["a"]}, "base_expid=['a'] must be a name"),
        ({"base_expid": 3}, "base_expid=3 must be a name"),
        ({"base_config": {}}, "base_config={} must be a path"),
        ({"dataset_id": 1.5}, "dataset_id=1.5 must be a name"),
        ({"tuner_spcae": {}}, "did you mean 'tuner_space'"),
    ],
)
def test_sections_are_mappings(folder, section, message):
    file = write_tuner(folder, {"c": [0.5]})
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | section))
    with pytest.raises(SettingsError) as error:
        read_tuner(file)
    assert message in str(error.value)
