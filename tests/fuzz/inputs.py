"""Generators of what users may write: configurations, tuner files, options, json files of ours."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from fuxictr_tf4ctr.settings.keys import KEYS

from . import project

# What stands where something else is meant.
_NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 64, 10**4, 10**8, 10**12, 2**31, 2**63, 2**64, -(2**63), 10**30),
    *(0.0, 0.5, -0.5, 1.0, 1e-9, 1e30, float("nan"), float("inf"), float("-inf")),
)
_TEXTS = (
    *("", " ", "a", "None", "nan", "1e-3", "true", "../..", "/", "a/b", "~", "\0", "\n", "ü" * 9),
    *("x" * 300, "x" * 5000, "é/" * 200, "%s{}", "__import__('os')", "$HOME", "Adam", "adagrad"),
    *("relu", "rellu", "Dice", "sigmoid", "AUC", "logloss", "gAUC", "auc", "GM", "MoE", "none"),
    *("VF", "CF", "MoEF", "sum", "l2(1e-3)", "l1_l2(0,1)", "l2(", "mse_loss", "bce", "csv", "h5"),
    *("parquet", "npz", "TF4CTR_DCNv2", "TF4CTR_DIN", "DeepFM", "TwinModel", "os:system", "user"),
    *("item", "price", "tags", "label", "raw/train.csv", "raw", "config", "done/exp.model", "lzf"),
    *("StandardScaler", "MinMaxScaler", "layers.MaskedSumPooling()", "bf16", "sequence", "numeric"),
)
_SMALL = st.one_of(
    st.none(), st.booleans(), st.sampled_from(_NUMBERS), st.sampled_from(_TEXTS),
    st.integers(-5, 40), st.floats(allow_nan=False, width=16), st.text(max_size=8),
)  # fmt: skip
VALUES = st.recursive(
    _SMALL,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers(0, 3)), inner, max_size=3),
    ),
    max_leaves=6,
)
_KEYS = (
    *KEYS, "inherits", "c", "gamma", "alpha", "twin_focus", "sample_selection", "fusion",
    "simple_encoder", "complex_encoder", "simple_hidden_units", "complex_hidden_units",
    "simple_hidden_activations", "complex_hidden_activations", "gm_hidden_units", "batch_norm",
    "embedding_dim", "hidden_activations", "net_dropout", "num_heads", "num_workers", "oov_idx",
    "na_value", "data_block_size", "pickle_feature_encoder", "debug_mode", "net_dropuot", "new key",
)  # fmt: skip
_COLUMN_KEYS = (
    "name", "active", "dtype", "type", "splitter", "max_len", "padding", "feature_encoder",
    "share_embedding", "normalizer", "fill_na", "preprocess", "pretrained_emb", "freeze_emb",
    "vocab_size", "embedding_dim", "num_buckets", "category_processor", "remap",
    "min_categr_count",
)  # fmt: skip
# What may well be meant: half of all values, so that what lies behind the checks is met as well.
_PLAUSIBLE = {
    "model": ("TF4CTR_DCNv2", "TF4CTR_DeepFM", "TF4CTR_FCN", "TF4CTR_DIN", "TF4CTR_AutoInt"),
    "batch_size": (1, 2, 7, 19, 59, 60, 61, 1000), "embedding_dim": (1, 2, 3, 8),
    "fusion": ("WSF", "VF", "CF", "MoEF", "sum"), "sample_selection": ("SER", "GM", "MoE", "none"),
    "simple_hidden_units": ([], [1], [3, 2]), "complex_hidden_units": ([], [1], [3, 2]),
    "optimizer": ("sgd", "SGD", "Adagrad", "RMSprop", "Adadelta", "Rprop", "AdamW", "Muon"),
    "metrics": (["AUC"], ["logloss"], ["gAUC", "AUC"], ["avgAUC"], ["NDCG(k=2)"], []),
    "monitor": ("AUC", {"logloss": -1}, "gAUC", {"AUC": 1, "logloss": -1}), "task": ("regression",),
    "loss": ("bce", "mse_loss", "l1_loss"), "net_dropout": (0, 0.5, 1, 1.0), "batch_norm": (True,),
    "hidden_activations": ("relu", "Dice", "sigmoid", "prelu", None), "shuffle": (False,),
    "learning_rate": (0, 1e-9, 1e3, 1e30), "eval_steps": (1, 2, 0.5, 1000), "num_workers": (0, 1),
    "embedding_regularizer": (0, 1e-3, "l1(1e-3)"), "net_regularizer": (0, 1e-3, "l2(1e-3)"),
    "twin_focus": (False,), "c": (0, 0.5, 1), "gamma": (0, 1, 5), "alpha": (0, 1), "verbose": (1,),
    "use_features": (["user"], ["user", "price"], []), "fast": (True,), "compression": ("gzip",),
    "early_stop_patience": (1,), "max_gradient_norm": (1e-9, 1), "seed": (0, 2**32 - 1),
    "checkpoint_steps": (1, 10**6), "checkpoint_minutes": (0, 0.001), "tensorboard": (True,),
    "average_weights": (0.5, 0.9), "average_start": (0, 2), "trackers": (["tensorboard"],),
    "weight_col": ("price", "user"), "pos_weight": (0.5, 3), "negative_sampling": (0.1, 0.5),
    "calibration": ("isotonic", "temperature"), "continue_from": ("done", "stopped", "raw"),
    "keep_optimizer": (True,), "refit_normalizers": (True,),
    "storage": ("memory", "disk"), "memory_budget": (1, 10**9),
    "min_categr_count": (0, 2, 100), "num_buckets": (2,), "sep": ("\t", ";"), "group_id": ("item",),
    "train_data": ("raw/valid.csv", "raw/*.csv", "raw", "tuner.yaml"), "valid_data": (None,),
    "test_data": (None, "raw/train.csv"), "data_format": ("parquet", "h5", "npz", "tfrecord"),
    "valid_size": (0.1, 1, 59), "test_size": (0.1, 60), "n_rows": (1, 3, 10**9),
    "split_type": ("random", "time", "group"), "split_by": ("price", "user", "tags"),
    "label_col": ({"name": "price", "dtype": "float"}, {"name": "user", "dtype": "str"}),
    "type": ("categorical", "numeric", "sequence", "embedding", "meta"), "active": (False,),
    "dtype": ("str", "float", "int"), "max_len": (1, 100), "padding": ("pre", "post"),
    "normalizer": ("StandardScaler", "MinMaxScaler"), "share_embedding": ("user", "item"),
    "fill_na": (0, "", "x"), "vocab_size": (1, 5), "freeze_emb": (True,),
    "category_processor": ("quantile_bucket", "hash_bucket"), "name": (["user"], "price", "label"),
}  # fmt: skip
# Long runs are no faults.
_SLOW = {"epochs": (1, 2), "early_stop_patience": (0, 1)}


@dataclass(frozen=True)
class Case:
    """A command with what is changed in the project before.

    Attributes:
        kind: What is generated.
        argv: The command.
        files: Path in the project -> its content; None removes it.
    """

    kind: str
    argv: tuple[str, ...]
    files: dict[str, bytes | None] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Change a copy of the project."""
        for name, content in self.files.items():
            path = folder / name
            path.unlink(missing_ok=True)
            if content is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def __str__(self) -> str:
        files = {
            name: None if content is None else content[:1500].decode("utf-8", "replace")
            for name, content in self.files.items()
        }
        return f"{' '.join(map(repr, self.argv))} with {files}"


def _text(draw: Callable, content: Any) -> bytes:
    """YAML of a content, now and then damaged or made to swell."""
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    harm = draw(st.sampled_from(["none"] * 24 + ["cut", "byte", "deep", "bomb", "cycle", "tag"]))
    if harm == "cut":
        text = text[: draw(st.integers(0, len(text)))]
    elif harm == "byte":
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(st.sampled_from("\0\t:[]{}&*!%@`|>-#'\"")) + text[place + 1 :]
    elif harm == "deep":
        depth = draw(st.sampled_from([50, 500, 5_000, 100_000]))
        text += f"\nextra: {'[' * depth}{']' * depth}\n"
    elif harm == "bomb":
        lines = [f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, 12)]
        text = "\n".join(["b0: &b0 [x, x]", *lines, text])
    elif harm == "cycle":
        text += "\ncycle: &cycle {inherits: exp, model: *cycle}\nloop: &loop [*loop]\n"
    elif harm == "tag":
        text += "\nextra: !!python/object/apply:os.system [id]\n"
    return text.encode("utf-8", "replace")


def _mutated(draw: Callable, section: dict[Any, Any], keys: tuple[str, ...]) -> dict[Any, Any]:
    section = copy.deepcopy(section)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        key = draw(st.sampled_from(keys))
        if key in _SLOW:
            section[key] = draw(st.sampled_from(_SLOW[key]))
        elif key in section and draw(st.integers(0, 5)) == 0:
            del section[key]
        elif key in _PLAUSIBLE and draw(st.booleans()):
            section[key] = draw(st.sampled_from(_PLAUSIBLE[key]))
        else:
            section[key] = draw(VALUES)
    if draw(st.integers(0, 60)) == 0:
        section[draw(st.sampled_from((None, 1, 2.5, True, (1, 2))))] = draw(VALUES)
    return section


def _dataset(draw: Callable) -> Any:
    dataset = copy.deepcopy(project.DATASET)
    if draw(st.booleans()):
        columns = dataset["feature_cols"]
        place = draw(st.integers(0, len(columns) - 1))
        columns[place] = (
            draw(st.one_of(VALUES, st.none()))
            if draw(st.integers(0, 9)) == 0
            else (_mutated(draw, columns[place], _COLUMN_KEYS))
        )
        return dataset
    return _mutated(draw, dataset, tuple(project.DATASET))


@st.composite
def configurations(draw: Callable) -> Case:
    """A configuration with a few things wrong, run, encoded or listed."""
    sections: Any = {"exp": project.MODEL}
    datasets: Any = {"mine": project.DATASET}
    what = draw(st.sampled_from(["model"] * 5 + ["dataset"] * 3 + ["sections"]))
    if what == "model":
        sections = {"exp": _mutated(draw, project.MODEL, _KEYS)}
    elif what == "dataset":
        datasets = {"mine": _dataset(draw)}
    else:
        sections = draw(
            st.one_of(
                VALUES,
                st.fixed_dictionaries({"exp": VALUES, "Base": VALUES}),
                st.fixed_dictionaries({"exp": st.just(project.MODEL), "Base": VALUES}),
            )
        )
        datasets = draw(
            st.one_of(st.just(datasets), VALUES, st.builds(lambda v: {"mine": v}, VALUES))
        )
    files = {
        "config/model_config.yaml": _text(draw, sections),
        "config/dataset_config.yaml": _text(draw, datasets),
    }
    if what == "model" and draw(st.integers(0, 3)):
        files.pop("config/dataset_config.yaml")
    commands = [project.RUN] * 6 + [
        ("plan", "exp", "--config", "config"),
        ("show", "exp", "--config", "config"),
        project.CONTINUE,
        ("encode", "--config", "config", "--dataset", "mine"),
        ("describe", "--config", "config", "--dataset", "mine"),
        ("list", "--config", "config"),
    ]
    return Case("configuration", draw(st.sampled_from(commands)), files)


@st.composite
def tuner_files(draw: Callable) -> Case:
    """A tuner file with a few things wrong."""
    keys = (*project.TUNER, "dataset_config", "model_config", "search", "metric")
    content = draw(
        st.one_of(
            st.builds(lambda: _mutated(draw, project.TUNER, keys)),
            st.dictionaries(st.sampled_from(_KEYS), VALUES, min_size=1, max_size=3).map(
                lambda space: project.TUNER | {"tuner_space": space}
            ),
            VALUES,
        )
    )
    options = draw(
        st.sampled_from(
            [(), (), ("--search", "random", "--trials", "2"), ("--max-points", "2"), ("--tag", "x")]
        )
    )
    argv = ("tune", "--config", "tuner.yaml", "--output", "sweep", *options)
    return Case("tuner file", argv, {"tuner.yaml": _text(draw, content)})


_WORDS = st.one_of(
    st.sampled_from(["1", "2", "0", "-1", "7", "0.5", "done", "out.csv", "config", "exp", "mine"]),
    st.sampled_from(["item", "price", "user", "epochs=1", "seed=3", "valid", "group:user", "AUC"]),
    st.sampled_from([str(number) for number in _NUMBERS]),
    st.sampled_from([text for text in _TEXTS if "\0" not in text]),
    st.sampled_from(
        ["done", "raw/test.csv", "raw", "config", "tuner.yaml", "out.csv", "out.parquet", "exp",
         "mine", "x=1", "epochs=1", "seed=2**64", "seed=18446744073709551616", "batch_size=0",
         "metrics=[5]", "model=[a]", "fusion=[]", "c=nan", "--json", "-h", "test", "onnx", "bars",
         "user,item", "user,", "table_sharding=auto", "time:price", "random", "swept"]
    ),
)  # fmt: skip
_COMMANDS = {
    ("run", "--config", "config", "--expid", "exp"): (
        "--expid", "--set", "--gpu", "--output", "--resume", "--workers", "--max-restarts",
        "--timeout", "--engine", "--address", "--zoo", "--config", "--continue-from",
    ),
    ("plan", "exp", "--config", "config"): ("--set", "--workers", "--hosts", "--gpu-memory"),
    ("show", "exp", "--config", "config"): ("--set", "--output", "--config", "--zoo"),
    ("encode", "--config", "config", "--dataset", "mine"): ("--dataset", "--set", "--zoo"),
    ("describe", "--config", "config", "--dataset", "mine"): ("--dataset", "--set", "--config"),
    ("decode", "--config", "config", "--dataset", "mine"): (
        "--split", "--first", "--rows", "--set",
    ),
    ("evaluate", "--run", "done"): ("--run", "--split", "--input", "--gpu", "--skip-bad-rows"),
    ("predict", "--run", "done", "--input", "raw/test.csv", "--output", "out.csv"): (
        "--input", "--output", "--keep", "--streams", "--gpu", "--skip-bad-rows", "--run",
    ),
    ("compare", "done", "done", "--resamples", "9"): ("--resamples", "--seed", "--json"),
    ("explain", "done"): ("--pairs", "--rows", "--seed", "--json"),
    ("report", "done", "--resamples", "9"): ("--output", "--resamples", "--seed"),
    ("results", "."): ("--where", "--sort", "--columns", "--format", "--compare", "--paired"),
    ("submit", "done"): ("--to", "--expid", "--contributor", "--draft"),
    ("init", "raw/train.csv", "--label", "label"): ("--label", "--output", "--model", "--split"),
    ("list",): ("--config", "--zoo", "expids", "models", "encoders"),
    ("tune", "--config", "tuner.yaml"): (
        "--config", "--output", "--gpu", "--workers", "--resume", "--tag", "--exclude", "--seeds",
        "--max-points", "--search", "--trials", "--best", "--no-prune",
    ),
}  # fmt: skip


@st.composite
def options(draw: Callable) -> Case:
    """A command with options that may not be meant so."""
    command = draw(st.sampled_from(sorted(_COMMANDS)))
    argv = list(command)
    for _ in range(draw(st.integers(1, 3))):
        argv.append(draw(st.sampled_from(_COMMANDS[command])))
        argv += draw(st.lists(_WORDS, min_size=draw(st.integers(0, 3)) > 0, max_size=1))
    # Processes that start processes are left to tests of their own.
    argv = [word for word in argv if word != "ray"]
    return Case("option", tuple(argv))


_DATA, _AS_IT_IS = ("--config", "config", "--dataset", "mine"), ("--set", "rebuild_dataset=False")
RESUME = (*project.RUN, "--resume", project.STOPPED)
READERS = {
    "done/run.json": (
        ("evaluate", "--run", "done"), ("report", "done", "--resamples", "9"), ("results", "."),
        ("predict", "--run", "done", "--input", "raw/test.csv", "--output", "s.csv"),
        (*project.RUN, "--resume", "done"), ("submit", "done", "--draft"),
        ("compare", "done", "done", "--resamples", "9"), ("results", "--compare", "done", "done"),
        ("explain", "done"), project.CONTINUE,
    ),
    "done/explanation.json": (("report", "done", "--resamples", "9"),),
    "done/calibration.json": (
        ("evaluate", "--run", "done"), ("report", "done", "--resamples", "9"),
        ("predict", "--run", "done", "--input", "raw/test.csv", "--output", "s.csv"),
    ),
    "swept/sweep.json": (
        ("report", "swept"), ("submit", "swept", "--draft"),
        ("tune", "--config", "tuner.yaml", "--output", "swept", "--resume"),
    ),
    "done/schema/feature_map.json": (
        ("evaluate", "--run", "done"), ("report", "done", "--resamples", "9"),
        ("predict", "--run", "done", "--input", "raw/test.csv", "--output", "s.csv"),
        ("explain", "done"), project.CONTINUE,
    ),
    "done/schema/feature_vocab.json": (
        project.CONTINUE,
        ("predict", "--run", "done", "--input", "raw/test.csv", "--output", "s.csv"),
        ("report", "done", "--resamples", "9"),
    ),
    "done/schema/encoder.json": (
        ("predict", "--run", "done", "--input", "raw/test.csv", "--output", "s.csv"),
        ("evaluate", "--run", "done", "--input", "raw/test.csv"), project.CONTINUE,
    ),
    "stopped/run.json": (RESUME,),
    "encoded/mine/feature_map.json": (
        (*project.RUN, *_AS_IT_IS), ("describe", *_DATA, *_AS_IT_IS), ("encode", *_DATA),
        ("decode", *_DATA, *_AS_IT_IS), ("plan", "exp", "--config", "config", *_AS_IT_IS),
    ),
    "encoded/mine/feature_vocab.json": (
        ("describe", *_DATA, *_AS_IT_IS), ("decode", *_DATA, *_AS_IT_IS),
    ),
    "encoded/mine/encoding.json": (
        project.RUN, ("describe", *_DATA), ("encode", *_DATA), ("decode", *_DATA),
        ("plan", "exp", "--config", "config"),
    ),
}  # fmt: skip


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key, each in value.items():
            found += _paths(each, (*path, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            found += _paths(each, (*path, index))
    return found


def misplace(draw: Callable, content: Any, values: st.SearchStrategy[Any]) -> None:
    """Remove one or two values of a nested content, or put others in their places."""
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(_paths(content)[1:] or [("x",)]))
        holder = content
        for step in way:
            holder = holder[step]
        if draw(st.integers(0, 3)) == 0:
            del holder[last]
        else:
            holder[last] = draw(values)


def json_files(kept: Path) -> st.SearchStrategy[Case]:
    """Json files of runs and encoded data with a few things wrong, read by the commands that do.

    Args:
        kept: The project.
    """
    trial = min((kept / "swept" / "runs").rglob("run.json")).relative_to(kept)
    readers = READERS | {str(trial): READERS["swept/sweep.json"] + (("results", "swept"),)}
    contents = {name: json.loads((kept / name).read_text()) for name in readers}

    @st.composite
    def cases(draw: Callable) -> Case:
        name = draw(st.sampled_from(sorted(readers)))
        content = copy.deepcopy(contents[name])
        misplace(draw, content, VALUES)
        text = json.dumps(content, default=str).encode()
        harm = draw(st.sampled_from(["none"] * 9 + ["cut", "byte", "deep"]))
        if harm == "cut":
            text = text[: draw(st.integers(0, len(text)))]
        elif harm == "byte":
            place = draw(st.integers(0, len(text) - 1))
            text = text[:place] + draw(st.binary(min_size=1, max_size=2)) + text[place + 1 :]
        elif harm == "deep":
            text = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
        argv = draw(st.sampled_from(readers[name]))
        return Case("json file", tuple(argv), {name: text})

    return cases()
