"""An export scores as the run does: every part as a graph, raw rows by the script alone."""

import json
import shutil
import subprocess
import sys
from functools import partial
from io import StringIO
from itertools import cycle, zip_longest
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from foreign_models import OwnBatches, Packed, Triangle, TwoTasks
from helpers import ALL_KINDS, make_feature_map, random_batch
from tiny_twins import build as tiny_twin

import model_zoo
from fuxictr_tf4ctr import files, load, run_experiment
from fuxictr_tf4ctr.cli import main
from fuxictr_tf4ctr.datasets.new_rows import RawRows
from fuxictr_tf4ctr.errors import DataError, SettingsError, StorageError
from fuxictr_tf4ctr.serving import export, score
from fuxictr_tf4ctr.serving.export import export_run
from fuxictr_tf4ctr.serving.graphs import GRAPHS, ScoringGraph, _export_errors
from fuxictr_tf4ctr.serving.score import Scorer
from fuxictr_tf4ctr.settings.reading import validated
from fuxictr_tf4ctr.twin import ENCODERS, FUSIONS, SAMPLE_SELECTIONS

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from zoo_exports import build, experiments

pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")

KINDS = ("onnx", "torch")

# Runs the script where nothing but numpy and onnxruntime can be imported beside Python's own.
ALONE = """
import builtins, runpy, sys
BARRED = {"torch", "polars", "pandas", "fuxictr", "fuxictr_tf4ctr", "sklearn", "h5py", "yaml"}
inner = builtins.__import__
def guarded(name, *arguments, **options):
    if name.split(".")[0] in BARRED:
        raise ImportError(f"{name} is barred")
    return inner(name, *arguments, **options)
builtins.__import__ = guarded
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def pair():
    params = {"simple_model": "TF4CTR_DeepFM", "complex_model": "TF4CTR_DCN", "embedding_dim": 4}
    return model_zoo.TF4CTR_Pair(make_feature_map(ALL_KINDS), **params)


def twins_of_all_parts():
    """Twins that have every encoder, sample selection and fusion among them; and a pair."""
    names = list(ENCODERS)
    encoders = zip_longest(names[::2], names[1::2], fillvalue="mlp")
    for parts in zip(encoders, cycle(SAMPLE_SELECTIONS), cycle(FUSIONS), strict=False):
        (simple, complex_), selection, fusion = parts
        params = {"simple_encoder": simple, "complex_encoder": complex_, "batch_norm": True}
        params |= {"sample_selection": selection, "fusion": fusion}
        yield pytest.param(partial(tiny_twin, "TF4CTR", **params), id=f"{simple}-{complex_}")
    yield pytest.param(pair, id="pair")


@pytest.mark.parametrize("build", list(twins_of_all_parts()))
def test_every_part_of_a_twin_scores_alike_in_onnx(build, tmp_path):
    model = build().eval()
    for buffer in model.buffers():  # as if trained: a BatchNorm that does something
        if buffer.is_floating_point() and buffer.ndim == 1:
            buffer.add_(0.1)
    graph = ScoringGraph(model)
    assert graph.outputs == ["y_pred", "y_simple", "y_complex"]
    scorer = GRAPHS["onnx"](graph, tmp_path)
    for rows in (1, 2, 33):
        batch = random_batch(model.feature_map, rows, seed=rows)
        with torch.no_grad():
            expected = model(batch)
        found = scorer({column: batch[column].numpy() for column in graph.inputs})
        for output, scores in zip(graph.outputs, found, strict=True):
            assert scores.shape == (rows,)
            np.testing.assert_allclose(scores, expected[output][:, 0], atol=5e-6)


def test_an_empty_sequence_scores_alike_in_onnx(tmp_path):
    features = {name: ALL_KINDS[name] for name in ("user", "item", "bought")}
    model = model_zoo.TF4CTR_DeepFM(make_feature_map(features), embedding_dim=4).eval()
    batch = random_batch(model.feature_map, 5)
    batch["bought"][0] = 0
    graph = ScoringGraph(model)
    scores = GRAPHS["onnx"](graph, tmp_path)({name: batch[name].numpy() for name in graph.inputs})
    with torch.no_grad():
        np.testing.assert_allclose(scores[0], model(batch)["y_pred"][:, 0], atol=5e-6)


def test_what_a_constant_mask_selects_is_exported_alone_and_in_a_pair(tmp_path):
    feature_map = make_feature_map(ALL_KINDS)
    both = {f"{role}_model": "foreign_models:Triangle" for role in ("simple", "complex")}
    pair = model_zoo.TF4CTR_Pair(feature_map, **both, embedding_dim=4)
    for model in (Triangle(feature_map), pair):
        folder = tmp_path / type(model).__name__
        folder.mkdir()
        graph = ScoringGraph(model)
        for kind in KINDS:
            scorer = GRAPHS[kind](graph, folder)
            for rows in (1, 4, 33):
                batch = random_batch(feature_map, rows, seed=rows)
                with torch.no_grad():
                    expected = model(batch)["y_pred"][:, 0]
                found = scorer({column: batch[column].numpy() for column in graph.inputs})
                np.testing.assert_allclose(found[0], expected, atol=5e-6)


@pytest.mark.parametrize(
    ("model_class", "words"),
    [
        (Packed, r"packs sequences by their lengths \(pack_padded_sequence\)"),
        (OwnBatches, "does not score a batch of plain columns, as models with a loader of their"),
        (TwoTasks, "returns click_pred, buy_pred and no y_pred, as models of several tasks do"),
    ],
)
def test_what_no_graph_expresses_is_refused_in_a_sentence(model_class, words):
    with pytest.raises(DataError, match=rf"^{model_class.__name__} cannot be exported: it {words}"):
        ScoringGraph(model_class(make_feature_map(ALL_KINDS)))


def test_errors_of_exporters_are_one_plain_line(tmp_path):
    with pytest.raises(DataError) as caught, _export_errors("ONNX"):
        raise RuntimeError("Failed.\x1b[96m This is step 3/3\x1b[0m\nand on") from ValueError(
            "no \x1b[1mop\x1b[0m\nhere"
        )
    assert str(caught.value) == "the model cannot be exported to ONNX: no op"


@pytest.mark.slow
def test_every_model_of_a_checkout_is_traced_or_refused(checkout):
    """``$FUXICTR_HOME`` or ../shared/peers/FuxiCTR; benchmarks/zoo_exports.py exports to ONNX."""
    found = experiments(checkout)
    assert len(found) > 40
    refused = {}
    for name, params in found.items():
        try:
            model = build(checkout, name, params)
        except Exception as error:  # not of our making: models that their own FuxiCTR cannot build
            refused[name] = f"cannot be built: {error}"
            continue
        try:
            ScoringGraph(model).traced()
        except DataError as error:
            refused[name] = str(error)
            assert "\n" not in str(error) and "cannot be exported: it " in str(error)
    assert len(refused) < len(found) / 3, refused


@pytest.fixture(scope="module")
def exports(demo_run, mixed_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    runs = {"demo": demo_run, "mixed": mixed_run}
    return {
        (name, kind): export_run(run, folder / f"{name}_{kind}", kind)
        for name, run in runs.items()
        for kind in KINDS
    }


def test_an_export_holds_what_its_manifest_says(exports, demo_run):
    done = exports["demo", "onnx"]
    assert (done.rows, done.difference <= 1e-5) == (1032, True)
    names = {"features.json", "manifest.json", "model.onnx", "score.py", "vocabularies.json"}
    assert {path.name for path in done.folder.iterdir()} == names
    manifest = json.loads((done.folder / "manifest.json").read_text())
    assert manifest["metrics"]["test"] == pytest.approx(demo_run.record.test)
    assert manifest["parity"]["max_difference"] == done.difference
    assert set(manifest["files"]) == names - {"manifest.json"}
    inputs = {each["name"]: (each["dtype"], each["shape"]) for each in manifest["inputs"]}
    assert inputs["age"] == ("float32", ["batch"]) and inputs["job"] == ("int64", ["batch"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["demo", "mixed"])
def test_the_script_encodes_and_scores_raw_rows_as_the_run_does(name, kind, exports, request):
    run, csv = (request.getfixturevalue(f"{name}_{what}") for what in ("run", "csv"))
    frame = pl.read_csv(csv, infer_schema=False)
    if name == "mixed":  # and what training never saw
        strange = frame.head(2).with_columns(user=pl.lit("new"), history=pl.lit("x^i1^^i2^y^z"))
        frame = pl.concat([frame, strange])
    rows = frame.to_dicts()
    scores = Scorer(exports[name, kind].folder).score(rows)
    numbers = [c["name"] for c in json.loads(
        (exports[name, kind].folder / "features.json").read_text())["columns"]
        if c["dtype"] != "str"]  # fmt: skip
    typed = frame.with_columns(pl.col(numbers).cast(pl.Float64))
    typed = typed.with_columns(pl.col(set(numbers) & {"hour"}).cast(pl.Int64))
    expected = run.predict_frame(typed, streams=True)
    for output in ("y_pred", "y_simple", "y_complex"):
        np.testing.assert_allclose(scores[output], expected[output], atol=1e-5)


@pytest.mark.parametrize("name", ["demo", "mixed"])
def test_the_script_needs_onnxruntime_and_numpy_alone(name, exports, request, tmp_path):
    run, csv = (request.getfixturevalue(f"{name}_{what}") for what in ("run", "csv"))
    script = exports[name, "onnx"].folder / "score.py"
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(script), str(csv), "--batch", "17"],
        capture_output=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    found = pl.read_csv(done.stdout)
    expected = run.predict_frame(pl.read_csv(csv))
    np.testing.assert_allclose(found["y_pred"], expected, atol=1e-5)


BAD_ROWS = {
    "no rows": ("user,item\n", "there are no rows"),
    "no column": ("user,item\nu1,i1\n", "row 0: no column"),
    "fields": ("user,item\nu1\n", "row 0: has not as many fields"),
}


@pytest.mark.parametrize(("content", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_the_script_says_what_is_wrong(exports, tmp_path, content, message, capsys):
    rows = tmp_path / "rows.csv"
    rows.write_text(content)
    script = exports["mixed", "onnx"].folder / "score.py"
    done = subprocess.run(
        [sys.executable, str(script), str(rows)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_values_the_script_cannot_take_are_named(exports):
    scorer = Scorer(exports["mixed", "onnx"].folder)
    row = {"user": "u1", "item": "i1", "history": "i1", "tags": "t1", "hour": "3", "price": "1"}
    row |= {"age": "", "score": "0.5"}
    assert 0 < scorer.score([row])["y_pred"][0] < 1
    for column, value, message in (
        ("price", "dear", "row 1, column 'price': could not convert"),
        ("score", "inf", "row 1, column 'score': is not a finite number"),
        ("hour", "noon", "row 1, column 'hour': invalid literal"),
    ):
        with pytest.raises(ValueError, match=message):
            scorer.score([row, row | {column: value}])


def test_a_damaged_export_is_refused(exports, tmp_path):
    folder = shutil.copytree(exports["demo", "onnx"].folder, tmp_path / "export")
    vocabularies = folder / "vocabularies.json"
    text = vocabularies.read_text()
    vocabularies.write_text(text.replace("student", "students"))
    with pytest.raises(ValueError, match=r"vocabularies\.json: is not as it was exported"):
        Scorer(folder)
    vocabularies.write_text(text)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"format": "another"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is of format 'another'"):
        Scorer(folder)


def test_computed_columns_must_be_said_to_be_computed(exports, tmp_path):
    folder = shutil.copytree(exports["demo", "onnx"].folder, tmp_path / "export")
    features = json.loads((folder / "features.json").read_text())
    features["columns"][0]["preprocess"] = "to_years"
    (folder / "features.json").write_text(json.dumps(features))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"].pop("features.json")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="training computed age"):
        Scorer(folder)
    assert Scorer(folder, preprocessed=True).columns


PROCESSOR = """
import polars as pl
from fuxictr.preprocess import FeatureProcessor
class Mine(FeatureProcessor):
    def hour_of(self, name):
        return pl.col(name).str.slice(3).cast(pl.Int32)
    def decade_of(self, name):
        return (pl.col(name) // 10).cast(pl.Int64).cast(pl.String)
"""


def test_tokens_are_of_the_type_they_have_and_an_empty_text_may_be_one(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "hours.py").write_text(PROCESSOR)
    monkeypatch.syspath_prepend(tmp_path)
    columns = {
        "words": {"dtype": "list", "type": "sequence"},
        "numbers": {"dtype": "list", "type": "sequence"},
        "hour": {"dtype": "str", "type": "categorical", "preprocess": "hour_of"},
        "age": {"dtype": "float", "type": "categorical", "preprocess": "decade_of"},
        "known": {"dtype": "int", "type": "categorical", "share_embedding": "hour"},
        "job": {"dtype": "str", "type": "categorical", "fill_na": "none"},
    }
    frame = pl.DataFrame(
        {
            "words": [["a", "b"], ["c", None], [], ["b"]] * 5,
            "numbers": [[1, 2], [3], [2], []] * 5,
            "hour": ["d1 07", "d1 13", "d2 07", "d3 21"] * 5,
            "age": [31.0, 38.0, 59.0, 7.0] * 5,
            "known": [7, 8, 13, 7] * 5,
            "job": ["", None, "", "cook"] * 5,
            "click": [0, 1, 1, 0] * 5,
        }
    )
    frame.write_parquet(tmp_path / "rows.parquet")
    places = dict.fromkeys(("train_data", "valid_data"), str(tmp_path / "rows.parquet"))
    params = places | {
        "dataset_id": "hours",
        "data_root": str(tmp_path / "data"),
        "data_format": "parquet",
        "feature_processor": "hours:Mine",
        "feature_cols": [{"name": name} | column for name, column in columns.items()],
        "label_col": {"name": "click", "dtype": "float"},
        "model": "TF4CTR_DCNv2",
        "model_root": str(tmp_path / "runs"),
        "epochs": 1,
        "embedding_dim": 4,
        "verbose": 0,
    }
    run = load(run_experiment(validated("hours", params, tmp_path)).folder)
    scorer = Scorer(export_run(run, tmp_path / "export").folder, preprocessed=True)
    computed = frame.with_columns(
        pl.col("hour").str.slice(3).cast(pl.Int64), pl.Series("age", ["3", "3", "5", "0"] * 5)
    )
    encoded = run.row_encoder.encode(RawRows(tmp_path, 0, frame)).columns
    for name, found in scorer.encode(computed.to_dicts()).items():
        np.testing.assert_array_equal(found, encoded[name], name)
        assert len(np.unique(found)) > 2, name
    expected = run.predict_frame(frame)
    scores = scorer.score(computed.to_dicts())["y_pred"]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    row = {"words": "a^b", "numbers": "1", "hour": "7", "age": "3", "known": "7", "job": ""}
    score._score_csv(scorer, StringIO(",".join(row) + "\n" + ",".join(row.values())), 9)
    found = float(capsys.readouterr().out.split("\n")[1].split(",")[0])
    of_none, of_empty = (scorer.score([row | {"job": job}])["y_pred"][0] for job in (None, ""))
    assert found == pytest.approx(of_none, abs=1e-7)
    assert found != pytest.approx(of_empty, abs=1e-7)


def test_a_model_that_scores_otherwise_is_not_exported(demo_run, tmp_path, monkeypatch):
    def shifted(graph, folder):
        def scorer(columns):
            with torch.no_grad():
                scores = graph(*map(torch.from_numpy, columns.values()))
            return [column.numpy() + 1e-4 for column in scores]

        return scorer

    monkeypatch.setattr(export, "GRAPHS", {"onnx": shifted})
    with pytest.raises(DataError, match=r"y_pred differs by 0\.0001, .*--tolerance [12]e-04$"):
        export_run(demo_run, tmp_path / "export")
    assert list(tmp_path.iterdir()) == []
    assert export_run(demo_run, tmp_path / "export", tolerance=1e-3).difference > 9e-5


def test_what_cannot_be_exported_is_refused(demo_run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="is in use"):
        export_run(demo_run, tmp_path)
    with pytest.raises(SettingsError, match="no such folder"):
        export_run(demo_run, tmp_path / "no" / "export")
    with pytest.raises(SettingsError, match="did you mean 'onnx'"):
        export_run(demo_run, tmp_path / "export", "onx")
    with monkeypatch.context() as disk, pytest.raises(StorageError, match=r"needs about 0\.. MB"):
        disk.setattr(files, "_free", lambda path: 1000)
        export_run(demo_run, tmp_path / "export")
    folder = shutil.copytree(demo_run.folder, tmp_path / "run")
    (folder / "schema" / "encoder.json").unlink()
    with pytest.raises(DataError, match="new rows cannot be encoded"):
        export_run(load(folder), tmp_path / "export")


def test_the_command_line(demo_run, tmp_path, capsys):
    arguments = ["export", "--run", str(demo_run.folder), "--output", str(tmp_path / "e")]
    assert main([*arguments, "--format", "torch"]) == 0
    assert "1,032 rows scored alike: largest difference 0" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "is in use" in capsys.readouterr().err
