"""A small project that every case has a copy of: raw data, configuration, a run, a sweep."""

import os
import shutil
from pathlib import Path

import yaml

from fuxictr_tf4ctr.errors import EngineError, Terminated

from .forking import run

ROWS = 60
DATASET = {
    "data_root": "encoded/",
    "data_format": "csv",
    "train_data": "raw/train.csv",
    "valid_data": "raw/valid.csv",
    "test_data": "raw/test.csv",
    "min_categr_count": 9,  # three of seven users are too rare
    "group_id": "user",
    "feature_cols": [
        {"name": ["user", "item"], "active": True, "dtype": "str", "type": "categorical"},
        {"name": "price", "active": True, "dtype": "float", "type": "numeric"},
        {
            "name": "tags", "active": True, "dtype": "str", "type": "sequence",
            "splitter": "^", "max_len": 3, "feature_encoder": "layers.MaskedAveragePooling()",
        },
    ],
    "label_col": {"name": "label", "dtype": "float"},
}  # fmt: skip
MODEL = {
    "model": "TF4CTR",
    "dataset_id": "mine",
    "metrics": ["AUC", "logloss", "gAUC"],
    "batch_size": 20,
    "epochs": 1,
    "learning_rate": 0.01,
    "embedding_dim": 4,
    "simple_hidden_units": [4],
    "complex_hidden_units": [4],
    "sample_selection": "SER",
    "fusion": "WSF",
    "c": 0.8,
    "checkpoint_steps": 2,
    "seed": 7,
    "verbose": 0,
}
TUNER = {
    "base_config": "./config/",
    "base_expid": "exp",
    "dataset_id": "mine",
    "tuner_space": {"c": [0.5, 0.8]},
}
RUN = ("run", "--config", "config", "--expid", "exp")
# A finished run, one whose state is to be taken up, a sweep.
DONE, STOPPED, SWEPT = "done", "stopped", "swept"
CONTINUE = (*RUN, "--set", "keep_optimizer=true", "--continue-from", DONE)


def write_raw(folder: Path) -> None:
    """Write the raw files and the configuration of the project."""
    (folder / "raw").mkdir(parents=True)
    (folder / "config").mkdir()
    rows = [
        f"{int((i * 7) % 11 < 5)},u{i % 7},i{i % 5},{i % 13 / 3:.3f},{'^'.join('abc'[: i % 4])}"
        for i in range(ROWS)
    ]
    for split, part in (("train", rows), ("valid", rows[::2]), ("test", rows[1::2])):
        text = "\n".join(["label,user,item,price,tags", *part]) + "\n"
        (folder / "raw" / f"{split}.csv").write_text(text)
    (folder / "raw" / "many.csv").write_text("\n".join(["label,user,item,price,tags", *rows * 40]))
    for name, content in (
        ("config/model_config.yaml", {"exp": MODEL}),
        ("config/dataset_config.yaml", {"mine": DATASET}),
        ("tuner.yaml", TUNER),
    ):
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))


class Project:
    """The project, made once and copied for every case to the same place.

    Args:
        folder: A folder for it and its copies.
    """

    def __init__(self, folder: Path) -> None:
        # The place is part of what is recorded of the data: a copy elsewhere is other data.
        self.place, self.kept = folder / "case", folder / "kept"
        write_raw(self.place)
        kept = ("--set", "keep_optimizer=true", "--set", "calibration=isotonic")
        ended = run((*RUN, *kept), self.place)
        assert ended.status == 0, ended.errors
        (finished,) = (self.place / "checkpoints" / "mine" / "exp").iterdir()
        shutil.copytree(finished, self.place / DONE)
        explained = run(("explain", DONE), self.place)
        assert explained.status == 0, explained.errors
        shutil.move(finished, self.place / "checkpoints" / "finished")
        stopped = run(RUN, self.place, _stop_after_training)
        assert stopped.status == 143, stopped.errors
        (unfinished,) = (self.place / "checkpoints" / "mine" / "exp").iterdir()
        shutil.move(unfinished, self.place / STOPPED)
        shutil.move(self.place / "checkpoints" / "finished", finished)
        # The data of the sweep: its encoding starts threads, which forks of its process would lack.
        sweep = run(("tune", "--config", "tuner.yaml"), self.place, _encode_alone)
        assert sweep.status == 1, sweep.errors
        shutil.rmtree(self.place / "sweeps")
        sweep = run(("tune", "--config", "tuner.yaml", "--output", SWEPT), self.place)
        assert sweep.status == 0, sweep.errors
        os.rename(self.place, self.kept)

    def copy(self) -> Path:
        """Return the project as it was made; the copy of an earlier case goes."""
        shutil.rmtree(self.place, ignore_errors=True)  # but for a file system mounted there
        shutil.copytree(self.kept, self.place, dirs_exist_ok=True)
        return self.place


def _stop_after_training() -> None:
    from fuxictr_tf4ctr.runs import experiment

    experiment._evaluate = lambda *_: (_ for _ in ()).throw(Terminated())


def _encode_alone() -> None:
    from fuxictr_tf4ctr import sweep

    sweep.Children.start = lambda *_: (_ for _ in ()).throw(EngineError("encoded"))
