"""The shipped dataset configs and the demo data set, held against data/README.md and FuxiCTR."""

import hashlib
import importlib
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

import fuxictr_tf4ctr  # noqa: F401  (makes fuxictr.preprocess importable without Ray)

# isort: split
from fuxictr.preprocess import FeatureProcessor

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
CONFIGS = sorted((ROOT / "config" / "dataset_config").glob("*.yaml"))
DATASET_IDS = [path.stem for path in CONFIGS]
README = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
MAKE_DEMO = ROOT / "data" / "make_demo.py"
SPLITS = ("train", "valid", "test")

REQUIRED_KEYS = {
    "data_root",
    "data_format",
    "train_data",
    "valid_data",
    "test_data",
    "min_categr_count",
    "feature_cols",
    "label_col",
}
OPTIONAL_KEYS = {"feature_processor", "group_id"}
COLUMN_KEYS = {"name", "active", "dtype", "type"}
COLUMN_OPTIONS = {"preprocess", "fill_na", "normalizer", "max_len", "splitter"}
DTYPES = {"str", "int", "float"}
TYPES = {"numeric", "categorical", "sequence", "embedding", "meta"}


def load(dataset_id: str) -> dict[str, Any]:
    """The config section of one dataset id."""
    path = ROOT / "config" / "dataset_config" / f"{dataset_id}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))[dataset_id]


def columns(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each feature column's name with its entry; FuxiCTR lets one entry name many columns."""
    for entry in config["feature_cols"]:
        names = entry["name"] if isinstance(entry["name"], list) else [entry["name"]]
        for name in names:
            yield name, entry


def active_names(config: dict[str, Any]) -> list[str]:
    return [name for name, entry in columns(config) if entry["active"]]


def processor_class(config: dict[str, Any]) -> type[FeatureProcessor]:
    if "feature_processor" not in config:
        return FeatureProcessor
    return importlib.import_module(config["feature_processor"]).CustomizedFeatureProcessor


def section(dataset_id: str) -> str:
    """The README's text on one data set."""
    found = re.search(rf"^## {dataset_id}\n(.*?)(?=^## |\Z)", README, flags=re.M | re.S)
    assert found, f"data/README.md has no section {dataset_id}"
    return found[1]


def stated_rows(dataset_id: str) -> list[int]:
    """Fields, then rows of train, valid and test, as the README's table states them."""
    found = re.search(rf"^\| \[`{dataset_id}`\].*?\|(.*?)\| (?:yes|no)", README, flags=re.M)
    assert found, f"data/README.md has no table row for {dataset_id}"
    return [int(number.replace(",", "")) for number in found[1].split("|")]


def stated_md5(dataset_id: str) -> dict[str, str]:
    """Split to md5 sum, as the README states them."""
    found = re.findall(r"^([0-9a-f]{32})  (\w+)\.csv$", section(dataset_id), flags=re.M)
    return {name: digest for digest, name in found}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def fit(dataset_id: str, train_csv: Path, folder: Path) -> FeatureProcessor:
    """FuxiCTR's own processor, fitted on a csv; it writes its files into the folder."""
    config = load(dataset_id) | {"data_root": f"{folder}/"}
    processor = processor_class(config)(dataset_id=dataset_id, **config)
    train = processor.preprocess(processor.read_data(str(train_csv)))
    processor.fit(train, min_categr_count=config["min_categr_count"])
    return processor


def vocab_sizes(processor: FeatureProcessor) -> dict[str, int | None]:
    """Field to vocabulary size, None for a numeric field, in the order of the feature map."""
    return {name: spec.get("vocab_size") for name, spec in processor.feature_map.features.items()}


def tokens(processor: FeatureProcessor, name: str) -> set[Any]:
    """The tokens with an id of their own."""
    return set(processor.processor_dict[f"{name}::tokenizer"].vocab) - {"__PAD__", "__OOV__"}


@pytest.fixture(scope="module")
def make_demo() -> dict[str, Any]:
    """The names defined by data/make_demo.py."""
    return runpy.run_path(str(MAKE_DEMO))


# The files ------------------------------------------------------------------------------------


def test_readme_lists_the_data_sets_that_have_a_config():
    assert sorted(re.findall(r"^\| \[`(\w+)`\]", README, flags=re.M)) == DATASET_IDS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_file_holds_the_data_set_it_is_named_after(path):
    sections = list(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert sections[0] == path.stem
    assert all(name.startswith(f"{path.stem}_") for name in sections[1:])


@pytest.mark.parametrize("dataset_id", DATASET_IDS)
def test_section_has_exactly_the_known_keys(dataset_id):
    keys = set(load(dataset_id))
    assert keys >= REQUIRED_KEYS
    assert keys <= REQUIRED_KEYS | OPTIONAL_KEYS


@pytest.mark.parametrize("dataset_id", DATASET_IDS)
def test_paths_follow_the_readme(dataset_id):
    config = load(dataset_id)
    assert config["data_root"] == "data/"
    assert config["data_format"] == "csv"
    for split in SPLITS:
        assert config[f"{split}_data"] == f"data/{dataset_id}/{split}.csv"


@pytest.mark.parametrize("dataset_id", DATASET_IDS)
def test_columns_are_well_formed(dataset_id):
    config = load(dataset_id)
    assert set(config["label_col"]) == {"name", "dtype"}
    names = [config["label_col"]["name"]]
    for name, entry in columns(config):
        names.append(name)
        assert set(entry) >= COLUMN_KEYS, name
        assert set(entry) <= COLUMN_KEYS | COLUMN_OPTIONS, name
        assert entry["dtype"] in DTYPES, name
        assert entry["type"] in TYPES, name
        assert isinstance(entry["active"], bool), name
    assert len(names) == len(set(names)), "a column is named twice"


@pytest.mark.parametrize("dataset_id", DATASET_IDS)
def test_preprocess_functions_exist_on_the_processor(dataset_id):
    config = load(dataset_id)
    for name, entry in columns(config):
        if "preprocess" in entry:
            function = entry["preprocess"].split("(")[0]
            assert callable(getattr(processor_class(config), function, None)), name


@pytest.mark.parametrize("dataset_id", DATASET_IDS)
def test_group_id_names_a_feature_of_the_batch(dataset_id):
    config = load(dataset_id)
    if "group_id" in config:
        assert config["group_id"] in active_names(config)
        assert f"gAUC groups by `{config['group_id']}`" in " ".join(section(dataset_id).split())


@pytest.mark.parametrize("dataset_id", DATASET_IDS)
def test_readme_states_the_fields(dataset_id):
    config = load(dataset_id)
    assert stated_rows(dataset_id)[0] == len(active_names(config))
    assert f"`{config['label_col']['name']}`" in section(dataset_id)


@pytest.mark.parametrize("dataset_id", sorted(set(DATASET_IDS) - {"ml1m"}))
def test_readme_states_the_md5_of_every_split(dataset_id):
    assert set(stated_md5(dataset_id)) == set(SPLITS)


# The demo data set ----------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_demo_file_is_the_one_the_readme_describes(split):
    path = ROOT / "data" / "demo" / f"{split}.csv"
    rows = pl.read_csv(path)
    assert md5(path) == stated_md5("demo")[split]
    assert path.stat().st_size < 2_000_000
    assert rows.height == stated_rows("demo")[1 + SPLITS.index(split)]
    assert rows.columns[0] == "label"
    assert set(rows["label"]) == {0, 1}
    assert f"{100 * rows['label'].mean():.2f} % of {split}" in section("demo")


def test_demo_fields_are_those_of_the_config():
    header = pl.read_csv(ROOT / "data" / "demo" / "train.csv", n_rows=0).columns
    assert set(header) == {"label", *active_names(load("demo"))}
    assert "duration" not in header


def test_demo_is_reproduced_from_the_uci_file(make_demo, tmp_path):
    source = SHARED / "bank_marketing" / "bank-full.csv"
    if not source.exists():
        pytest.skip(f"UCI's bank-full.csv is not at {source}")
    make_demo["make_demo"](source, tmp_path)
    assert {split: md5(tmp_path / f"{split}.csv") for split in SPLITS} == stated_md5("demo")


def test_demo_splits_share_no_row(make_demo):
    splits = make_demo["split"](pl.DataFrame({"row": np.arange(45_211)}))
    drawn = pl.concat(splits.values())["row"]
    assert list(splits) == list(SPLITS)
    assert drawn.n_unique() == drawn.len() == 30_000


def test_ml_1m_7_drops_neutral_ratings_whatever_the_order_of_the_files(tmp_path):
    make = runpy.run_path(str(ROOT / "data" / "make_ml_1m_7.py"))
    ratings = [f"{user}::{movie}::{1 + (user + movie) % 5}::9" for user in (1, 2, 10) for movie in
               (1, 9, 20)]  # fmt: skip
    made = []
    for order in (ratings, ratings[::-1]):
        (tmp_path / "ratings.dat").write_text("\n".join(order) + "\n")
        users = "".join(f"{user}::F::25::0::0{user}-1\n" for user in (1, 2, 10))
        (tmp_path / "users.dat").write_text(users)
        movies = "".join(f"{m}::Ran (1) :: (19{m:02d})::War\n" for m in (1, 9, 20))
        (tmp_path / "movies.dat").write_bytes(movies.replace(" :: ", " \xe9 ").encode("latin-1"))
        make["make_ml_1m_7"](tmp_path, tmp_path / "made")
        made.append([(tmp_path / "made" / f"{split}.csv").read_text() for split in SPLITS])
    assert made[0] == made[1]
    lines = [line for text in made[0] for line in text.splitlines()[1:]]
    assert len(set(lines)) == len(lines) == sum("::3::9" not in rating for rating in ratings)
    assert "1,2,F,25,0,02-1,1,1901,War" in lines
    (tmp_path / "movies.dat").write_text("1,Ran,War\n")
    with pytest.raises(ValueError, match=r"movies\.dat is not MovieLens-1M's"):
        make["make_ml_1m_7"](tmp_path, tmp_path / "made")


def test_make_demo_refuses_another_csv(make_demo, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("age;y\n30;no\n")
    with pytest.raises(ValueError, match=r"other\.csv.*columns missing: duration, poutcome"):
        make_demo["make_demo"](other, tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


# The configs, run through FuxiCTR's processor -------------------------------------------------


def test_demo_fits(tmp_path):
    processor = fit("demo", ROOT / "data" / "demo" / "train.csv", tmp_path)
    sizes = vocab_sizes(processor)
    assert [name for name, size in sizes.items() if size is None] == ["age", "balance", "pdays"]
    assert sizes["day"] == 31 + 2
    assert tokens(processor, "housing") == {"yes", "no"}


def test_frappe_has_the_published_vocabularies(tmp_path):
    train = SHARED / "frappe_x1" / "train.csv"
    if not train.exists():
        pytest.skip(f"Frappe_x1 is not at {train}")
    sizes = vocab_sizes(fit("frappe_x1", train, tmp_path))
    assert list(sizes.values()) == [942, 4084, 9, 9, 4, 5, 4, 11, 82, 233]
    stated = " ".join(section("frappe_x1").split())
    assert "942, 4084, 9, 9, 4, 5, 4, 11, 82 and 233 ids" in stated


def test_criteo_counts_become_buckets(tmp_path):
    """floor(log(x)^2) above 2; zero and missing have no id of their own."""
    config = load("criteo_x4")
    counts = [None, 0, 1, 2, 3, 20, 1000]
    train = pl.DataFrame(
        {"Label": [0] * 70}
        | {
            name: counts * 10 if entry["dtype"] == "float" else ["a", None] * 35
            for name, entry in columns(config)
        }
    )
    train.write_csv(tmp_path / "train.csv")
    processor = fit("criteo_x4", tmp_path / "train.csv", tmp_path)
    assert tokens(processor, "I1") == {1, 2, 8, 47}
    assert tokens(processor, "C26") == {"a"}


def test_avazu_time_stamp_gives_hour_weekday_and_weekend(tmp_path):
    config = load("avazu_x4")
    # A Saturday at 23 and a Monday at 8.
    train = pl.DataFrame(
        {
            name: ["14101823", "14102008"] * 2 if name == "hour" else ["1"] * 4
            for name in ["click", *(name for name, _ in columns(config))]
            if name not in ("weekday", "weekend")
        }
    )
    train.write_csv(tmp_path / "train.csv")
    processor = fit("avazu_x4", tmp_path / "train.csv", tmp_path)
    assert {int(hour) for hour in tokens(processor, "hour")} == {23, 8}
    assert {int(day) for day in tokens(processor, "weekday")} == {6, 1}
    assert {int(weekend) for weekend in tokens(processor, "weekend")} == {1, 0}
    assert "id" not in vocab_sizes(processor)


def test_kkbox_takes_missing_values(tmp_path):
    config = load("kkbox_x1")
    row = dict.fromkeys(["label", *active_names(config)], "1")
    known = row | {"bd": "25", "isrc": "TWA530887303", "genre_ids": "465"}
    unknown = row | {"bd": None, "isrc": None, "genre_ids": None}
    pl.DataFrame([known, unknown] * 2).write_csv(tmp_path / "train.csv")
    processor = fit("kkbox_x1", tmp_path / "train.csv", tmp_path)
    assert tokens(processor, "bd") == {"3"}
    assert tokens(processor, "isrc") == {"TW"}
    assert processor.feature_map.features["genre_ids"]["max_len"] == 3


@pytest.mark.parametrize(
    ("dataset_id", "sample", "separator"),
    [
        ("criteo_x4", "criteo_sample/criteo_8000.tsv", "\t"),
        ("avazu_x4", "avazu_sample/avazu_8999.csv", ","),
    ],
)
def test_real_rows_fit(dataset_id, sample, separator, tmp_path):
    source = SHARED / sample
    if not source.exists():
        pytest.skip(f"no sample at {source}")
    has_header = dataset_id == "avazu_x4"
    rows = pl.read_csv(source, separator=separator, has_header=has_header, infer_schema=False)
    config = load(dataset_id)
    if not has_header:
        rows.columns = [config["label_col"]["name"], *active_names(config)]
    rows.write_csv(tmp_path / "train.csv")
    sizes = vocab_sizes(fit(dataset_id, tmp_path / "train.csv", tmp_path))
    assert list(sizes) == active_names(config)
    # A padding id, an unknown id, and at least one token: no field came out empty.
    assert min(sizes.values()) >= 3
