"""Training on from a finished run: with new data, or with none."""

import json
import random
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch

from fuxictr_tf4ctr import load, load_settings, run_experiment
from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.errors import DataError, SettingsError

MODEL = {
    "model": "TF4CTR_DeepFM",
    "dataset_id": "days",
    "embedding_dim": 4,
    "complex_hidden_units": [8],
    "batch_size": 64,
    "epochs": 1,
    "verbose": 0,
    "shuffle": False,
}
COLUMNS = [
    {"name": "user", "active": True, "dtype": "str", "type": "categorical"},
    {"name": "item", "active": True, "dtype": "int", "type": "categorical"},
    {"name": "clicks", "active": True, "dtype": "str", "type": "sequence", "splitter": "^",
     "share_embedding": "user"},
    {"name": "price", "active": True, "dtype": "float", "type": "numeric",
     "normalizer": "StandardScaler"},
    {"name": "size", "active": True, "dtype": "float", "type": "categorical",
     "category_processor": "quantile_bucket", "num_buckets": 4},
    {"name": "hashed", "active": True, "dtype": "str", "type": "categorical",
     "category_processor": "hash_bucket", "preprocess": "copy_from(user)"},
]  # fmt: skip


def write_day(path: Path, users: range, seed: int, rare: str | None = None) -> str:
    """Rows of one day; one user comes once and is too rare for an id."""
    rng = random.Random(seed)
    rows = []
    for _ in range(300):
        user, item = rng.choice(users), rng.randrange(12)
        clicks = "^".join(f"u{rng.choice(users)}" for _ in range(rng.randrange(1, 4)))
        row = {"user": f"u{user}", "item": item, "clicks": clicks, "price": rng.gauss(seed, 1.0)}
        click = int(rng.random() < (0.8 if (user + item) % 2 else 0.2))
        rows.append(row | {"size": rng.random() * seed, "click": click})
    if rare is not None:
        rows[0]["user"] = rare
    pl.DataFrame(rows).write_csv(path)
    return str(path)


def settings(folder: Path, day: str, **changes):
    """Settings of a run on one day's rows, the last of them for the test."""
    dataset = {
        "data_root": str(folder / "data"), "data_format": "csv", "train_data": day,
        "test_size": 0.2, "min_categr_count": 2, "feature_cols": COLUMNS,
        "label_col": {"name": "click", "dtype": "float"},
    }  # fmt: skip
    config = folder / "config"
    config.mkdir(exist_ok=True)
    changed = {key: changes.pop(key) for key in list(changes) if key in dataset}
    (config / "dataset_config.yaml").write_text(json.dumps({"days": dataset | changed}))
    (config / "model_config.yaml").write_text(json.dumps({"day": MODEL}))
    changes = {key: str(value) if isinstance(value, Path) else value
               for key, value in changes.items()}  # fmt: skip
    return load_settings("day", config, {"model_root": str(folder / "runs")} | changes)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run on the first day, and the second day's rows."""
    folder = tmp_path_factory.mktemp("days")
    day = write_day(folder / "1.csv", range(10), 1, rare="seldom")
    record = run_experiment(settings(folder, day, keep_optimizer=True))
    return folder, record, write_day(folder / "2.csv", range(5, 16), 2, rare="seldom")


def vocabulary(record, name):
    return json.loads((record.schema_folder / "feature_vocab.json").read_text())[name]


def weights(record):
    return torch.load(record.checkpoint, weights_only=True)


def test_without_new_values_it_is_training_on(first):
    folder, *_ = first
    day = write_day(folder / "0.csv", range(10), 3)
    record = run_experiment(settings(folder, day, keep_optimizer=True))
    going_on = settings(folder, day, keep_optimizer=True, continue_from=record.folder)
    continued = run_experiment(going_on)
    at_once = run_experiment(settings(folder, day, epochs=2))
    assert not any(continued.ancestor["new_values"].values())
    for name, weight in weights(at_once).items():
        assert torch.equal(weights(continued)[name], weight), name
    assert continued.test == at_once.test


def test_new_values_get_rows_and_old_ones_keep_theirs(first):
    folder, record, day = first
    run = run_experiment(settings(folder, day, continue_from=record.folder, learning_rate=1e-12))
    for name in ("user", "item", "clicks"):
        before, after = vocabulary(record, name), vocabulary(run, name)
        assert before.items() <= after.items()
        assert sorted(after.values()) == list(range(len(after)))
    # Once in each day: twice in all, as min_categr_count asks.
    assert "seldom" not in vocabulary(record, "user")
    assert {"seldom", "u15"} <= vocabulary(run, "user").keys()
    assert vocabulary(run, "user") == vocabulary(run, "clicks")
    grown = run.ancestor["new_values"]
    assert grown["user"] == len(vocabulary(run, "user")) - len(vocabulary(record, "user")) > 0
    assert grown["size"] == 0 and run.ancestor["folder"] == str(record.folder.resolve())
    old, new = weights(record), weights(run)
    tables = [name for name in old if len(new[name].shape) and len(new[name]) > len(old[name])]
    assert tables
    for name in old:
        rows = new[name][: len(old[name])] if name in tables else new[name]
        torch.testing.assert_close(rows, old[name], rtol=0, atol=1e-5)
    assert all(new[name][len(old[name]) :].abs().sum() > 0 for name in tables if "lr" not in name)
    # Served as any run, and the next may go on from it.
    known = pl.read_csv(folder / "1.csv")
    scores = load(run.folder).predict_frame(known)
    assert abs(scores - load(record.folder).predict_frame(known)).max() < 0.1
    again = run_experiment(settings(folder, day, continue_from=run.folder))
    assert not any(again.ancestor["new_values"].values())


def test_numbers_are_normalised_as_before_or_anew(first):
    folder, record, day = first
    found = {}
    for refit in (False, True):
        run = run_experiment(
            settings(folder, day, continue_from=record.folder, refit_normalizers=refit)
        )
        found[refit] = [
            json.loads((each.schema_folder / "encoder.json").read_text())["normalizers"]["price"]
            for each in (record, run)
        ]
        maps = [(each.schema_folder / "feature_map.json").read_text() for each in (record, run)]
        sizes = [next(e["size"] for e in json.loads(m)["features"] if "size" in e) for m in maps]
        assert sizes[0] == sizes[1]  # buckets keep their bounds
    assert found[False][0] == found[False][1]
    assert found[True][1]["mean"] > found[True][0]["mean"] + 0.5


def test_the_command_line_continues_and_compares(first, capsys):
    folder, record, day = first
    settings(folder, day)
    command = ["run", "--config", str(folder / "config"), "--expid", "day"]
    command += ["--output", str(folder / "more"), "--continue-from", str(record.folder)]
    assert main([*command, "--set", "keep_optimizer=true"]) == 0
    (run,) = (folder / "more" / "days" / "day").iterdir()
    scratch = run_experiment(settings(folder, day))
    assert main(["compare", str(run), str(scratch.folder), "--resamples", "10"]) == 0


def changed(**key):
    return [{**COLUMNS[0], **key}, *COLUMNS[1:]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_cols": COLUMNS[1:]}, "column 'user' is not there now|share_embedding"),
        ({"feature_cols": [COLUMNS[1], COLUMNS[0], *COLUMNS[2:]]}, "another order"),
        ({"feature_cols": changed(fill_na="none")}, "column 'user': fill_na"),
        ({"feature_cols": changed(dtype="int")}, "column 'user': dtype: 'str' then, 'int' now"),
        ({"num_buckets": 7}, r"differ:\n- column 'hashed': num_buckets: 10 then, 7 now$"),
        ({"model": "TF4CTR_DCNv2"}, "its model is TF4CTR_DeepFM"),
        ({"embedding_dim": 8}, "does not belong to this model"),
        ({"continue_from": "nowhere"}, "no such folder"),
    ],
)
def test_another_model_or_other_columns_are_refused_before_rows_are_read(first, changes, message):
    folder, record, day = first
    before = sorted(folder.rglob("*"))
    with pytest.raises((SettingsError, DataError), match=message):
        run_experiment(settings(folder, day, **{"continue_from": record.folder} | changes))
    assert sorted(folder.rglob("*")) == before


def misshapen(run: Path) -> None:
    states = torch.load(run / "day.optimizer", weights_only=True)
    for state in states["optimizer"].values():
        state["exp_avg"] = torch.zeros(3)
    torch.save(states, run / "day.optimizer")


DAMAGES = {
    "rare tokens": (lambda run: (run / "schema/rare_tokens.parquet").write_bytes(b"PAR1"),
                    r"rare_tokens.parquet: cannot be read, remove it"),
    "optimizer": (lambda run: torch.save({"optimizer": 5}, run / "day.optimizer"),
                  r"day.optimizer: optimizer=5 must be a mapping"),
    "state": (misshapen, "does not belong to this model"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_an_ancestor_that_is_damaged_is_named(first, tmp_path, damage, message):
    folder, record, day = first
    run = shutil.copytree(record.folder, tmp_path / "run")
    damage(run)
    with pytest.raises(DataError, match=message):
        run_experiment(settings(folder, day, continue_from=run, keep_optimizer=True))


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_of_one_class_are_found_before_training(tmp_path, split):
    day = write_day(tmp_path / "1.csv", range(10), 1)
    rows = pl.read_csv(day).with_row_index()
    tail = rows["index"] >= 240  # the rows for the test
    kept = pl.lit(tail if split == "train" else ~tail)
    rows.with_columns(click=pl.col("click") * kept.cast(pl.Int64)).drop("index").write_csv(day)
    one = settings(tmp_path, day)
    message = rf"{split}\.h5: label 'click': all \d+ are 0; both 0 and 1 are needed"
    with pytest.raises(DataError, match=message):
        run_experiment(one)
    (record,) = tmp_path.rglob("run.json")
    assert json.loads(record.read_text())["evaluations"] == []


def test_an_optimizer_that_was_not_kept_cannot_be_taken_over(first):
    folder, _, day = first
    plain = run_experiment(settings(folder, day))
    with pytest.raises(SettingsError, match="keeps no state of its optimizer"):
        run_experiment(settings(folder, day, continue_from=plain.folder, keep_optimizer=True))
    (record_file := plain.folder / "run.json").write_text(
        record_file.read_text().replace('"finished"', '"interrupted"')
    )
    with pytest.raises(SettingsError, match="finish it by --resume"):
        run_experiment(settings(folder, day, continue_from=plain.folder))
