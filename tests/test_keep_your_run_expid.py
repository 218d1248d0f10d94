"""docs/keep_your_run_expid.md: the script and every change to it, under FuxiCTR's wheel and git."""

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from programs import fresh, run_program

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "keep_your_run_expid.md").read_text("utf-8")
BLOCKS = re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE, re.S)
SCRIPT, TWIN, FIND_MODEL, LOADER, MY_MODEL = BLOCKS
LOADING = 'RankDataLoader(feature_map, stage="train", **params)'

# All variants in one process: importing FuxiCTR takes most of the time.
RUNNER = """
import json, runpy, sys
for script, expid in json.loads(sys.argv[1]):
    sys.argv = [script, "config", expid]
    done = runpy.run_path(script, run_name="__main__")
    print("RESULT", script, expid, done["model"].evaluate(done["valid_gen"])["AUC"])
"""


def changed(script: str, *changes: str) -> str:
    """The script with each change in the place of the line that it says it replaces."""
    for change in changes:
        head, content = change.split("\n", 1)
        line = head.removeprefix("# was: ")
        assert line in script.splitlines()
        script = script.replace(line, content.strip())
    return script


@pytest.fixture
def place(tmp_path):
    """A folder with a config, encoded npz, and the label whether two ids agree in parity."""
    rng = np.random.default_rng(0)
    data = tmp_path / "data" / "tiny"
    data.mkdir(parents=True)
    for split, rows in (("train", 600), ("valid", 200)):
        a, b = rng.integers(1, 7, rows), rng.integers(1, 9, rows)
        np.savez(data / f"{split}.npz", a=a, b=b, label=((a + b) % 2).astype(float))
    features = [
        {name: {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": size}}
        for name, size in (("a", 8), ("b", 10))
    ]
    content = {"dataset_id": "tiny", "labels": ["label"], "features": features}
    (data / "feature_map.json").write_text(json.dumps(content))
    shared = {
        "model_root": "./models/", "dataset_id": "tiny", "optimizer": "adam", "verbose": 0,
        "loss": "binary_crossentropy", "task": "binary_classification", "learning_rate": 0.05,
        "metrics": ["AUC", "logloss"], "monitor": "AUC", "monitor_mode": "max", "epochs": 6,
        "batch_size": 64, "shuffle": True, "num_workers": 1, "seed": 1, "embedding_dim": 4,
        "early_stop_patience": 3, "save_best_only": True, "eval_steps": None,
    }  # fmt: skip
    twin = yaml.safe_load(TWIN)
    sections = twin | {"mine": {"model": "my_model:TwoTowers"}}
    sections = {name: shared | section for name, section in sections.items()}
    dataset = {
        "data_root": "./data/", "data_format": "npz", "train_data": "./data/tiny/train.npz",
        "valid_data": "./data/tiny/valid.npz",
    }  # fmt: skip
    (tmp_path / "config").mkdir()
    (tmp_path / "config/model_config.yaml").write_text(yaml.safe_dump({"Base": {}} | sections))
    (tmp_path / "config/dataset_config.yaml").write_text(yaml.safe_dump({"tiny": dataset}))
    (tmp_path / "my_model.py").write_text(MY_MODEL)
    return tmp_path


def run_all(
    place: Path, site: Path, iterator: str = "", paths: Sequence[Path] = ()
) -> dict[tuple[str, str], float]:
    """AUC of each variant of the script and experiment; ``iterator`` goes behind the loaders."""
    script = SCRIPT.replace(LOADING, LOADING + iterator)
    loader = LOADER.replace(LOADING, LOADING + iterator)
    twin = next(iter(yaml.safe_load(TWIN)))
    variants = {
        "run_expid.py": (script, [twin]),
        "find.py": (changed(script, FIND_MODEL), [twin, "mine"]),
        "loader.py": (changed(script, loader), [twin]),
    }
    for name, (content, _) in variants.items():
        (place / name).write_text(content)
    pairs = [(name, expid) for name, (_, expids) in variants.items() for expid in expids]
    code = fresh(site, *paths, ROOT, place)
    done = run_program("-c", code + RUNNER, json.dumps(pairs), cwd=place)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [line.split() for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return {(name, expid): float(auc) for _, name, expid, auc in results}


def check(aucs: dict[tuple[str, str], float]) -> None:
    assert len(aucs) == 4 and min(aucs.values()) > 0.7
    twin = next(iter(yaml.safe_load(TWIN)))
    # By another way to the same class: the same numbers.
    assert aucs["run_expid.py", twin] == aucs["find.py", twin]


def test_the_page_holds_under_the_wheel(place, site_without_us):
    check(run_all(place, site_without_us))


@pytest.mark.slow
def test_the_page_holds_under_git(place, site_without_us, checkout):
    if importlib.util.find_spec("keras_preprocessing") is None:
        pytest.skip("git's fuxictr needs keras_preprocessing")
    (place / "git").mkdir()
    (place / "git" / "fuxictr").symlink_to(checkout / "fuxictr")
    check(run_all(place, site_without_us, ".make_iterator()", [place / "git"]))
