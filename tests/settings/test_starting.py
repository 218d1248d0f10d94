"""``fuxictr init``: from a file to a configuration folder that runs."""

import gzip
import random

import polars as pl
import pytest
import yaml

from fuxictr_tf4ctr.cli import main


@pytest.fixture(scope="module")
def frame():
    """Rows of every kind of column; the click follows from item and price."""
    rng = random.Random(0)
    rows = []
    for number in range(1200):
        item, price = rng.randrange(30), rng.choice([2.5, 7.25, 11.0])
        click = int(rng.random() < (0.8 if item % 2 else 0.2))
        rows.append(
            {
                "row": f"r{number}",
                "item_id": 1000 + item,
                "hour": rng.randrange(24),
                "amount": int(rng.paretovariate(0.7)),
                "price": price,
                "clicks": "^".join(f"i{rng.randrange(8)}" for _ in range(rng.randrange(1, 4))),
                "zip": f"0{rng.randrange(40)}",
                "shop": "one",
                "bought": f"{'yes' if click else 'no'}{rng.randrange(3)}",
                "day": f"2024-05-{rng.randrange(1, 11):02d}",
                "click": click,
            }
        )
    return pl.DataFrame(rows)


@pytest.fixture
def data(tmp_path, monkeypatch, frame):
    monkeypatch.chdir(tmp_path)
    frame.write_csv("mine.csv")
    return tmp_path


def columns(folder):
    (section,) = yaml.safe_load((folder / "dataset_config.yaml").read_text()).values()
    found = {name: c for c in section["feature_cols"] for name in c["name"]}
    return section, {name: column["type"] for name, column in found.items()}


def test_what_it_writes_runs_and_is_split_by_time(data, capsys):
    assert main(["init", "mine.csv", "--label", "click", "--split", "time:day"]) == 0
    told = capsys.readouterr().out
    for name, note in [
        ("row", "another value in every row"),
        ("shop", "constant"),
        ("bought", "gives it away"),
        ("day", "a time"),
        ("clicks", "sequence by '^'"),
    ]:
        assert any(line.startswith(name) and note in line for line in told.splitlines()), name
    section, kinds = columns(data / "mine_config")
    assert kinds == {
        **dict.fromkeys(("item_id", "hour", "zip"), "categorical"),
        **dict.fromkeys(("amount", "price"), "numeric"),
        "clicks": "sequence",
    }
    command = told.splitlines()[-1].split()[1:]
    assert main([*command, "--set", "epochs=1"]) == 0
    assert section["split_by"] == "day" and section["test_size"] == 0.1
    assert "AUC" in capsys.readouterr().out


def test_a_folder_of_parquet_splits_and_a_model_that_is_no_twin(data, frame, capsys):
    (data / "parts").mkdir()
    typed = frame.with_columns(pl.col("day").str.to_date(), pl.col("clicks").str.split("^"))
    for split, rows in (("train", typed[:800]), ("test", typed[800:])):
        rows.write_parquet(data / "parts" / f"{split}.parquet")
    command = ["init", "parts", "--label", "click", "--output", "made", "--model", "DualMLP"]
    assert main(command) == 0
    section, kinds = columns(data / "made")
    assert section["data_format"] == "parquet" and section["valid_size"] == 0.1
    assert "test_size" not in section and kinds["clicks"] == "sequence"
    capsys.readouterr()
    run = ["run", "--config", "made", "--expid", "DualMLP_parts", "--set", "epochs=1"]
    assert main(run) == 0


@pytest.mark.parametrize(
    ("words", "label", "positive"),
    [(("no", "Yes"), "click", "Yes"), (("seen", "bought"), "click=bought", "bought")],
)
def test_a_label_may_be_words(data, frame, capsys, words, label, positive):
    frame = frame.drop("bought").rename({"click": "number"})
    click = pl.col("number").replace_strict({0: words[0], 1: words[1]})
    frame.select(pl.exclude("number"), click=click).write_csv("words.csv")
    frame.rename({"number": "click"}).write_csv("mine.csv")
    found = []
    for name, column in (("mine", "click"), ("words", label)):
        assert main(["init", f"{name}.csv", "--label", column]) == 0
        run = ["run", "--config", f"{name}_config", "--expid", f"DualMLP_{name}"]
        assert main([*run, "--set", "epochs=1"]) == 0
        told = capsys.readouterr().out
        found.append([line for line in told.splitlines() if "AUC" in line])
    assert f"1 where it says {positive!r}" in told and found[0] == found[1]
    again = ["run", "--config", "words_config", "--expid", "DualMLP_words", "--set", "epochs=1"]
    (first,) = (data / "checkpoints" / "words" / "DualMLP_words").iterdir()
    assert main([*again, "--continue-from", str(first)]) == 0
    section, _ = columns(data / "words_config")
    assert section["label_col"] == {"name": "click", "dtype": "float", "positive": positive}


def test_separators_other_than_commas_are_found(data, frame):
    frame.write_csv("mine.csv", separator=";")
    assert main(["init", "mine.csv", "--label", "click"]) == 0
    assert columns(data / "mine_config")[0]["sep"] == ";"


def edited(column, value):
    def edit(frame):
        frame.with_columns(pl.lit(value).alias(column)).write_csv("mine.csv")

    return edit


def content(raw):
    return lambda frame: open("mine.csv", "wb").write(raw)


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (None, ["--label", "clik"], "did you mean 'click'"),
        (None, ["--label", "price"], "label 'price' holds"),
        (edited("click", 1), [], "all 1200 are 1"),
        (edited("click", "yes"), [], "holds 'yes': write 0 and 1"),
        (None, ["--label", "price=3"], "'price', 1 for '3': all 1200 are 0"),
        (None, ["--split", "time:dya"], "did you mean 'day'"),
        (None, ["--split", "time:clicks"], "is no time"),
        (None, ["--split", "weeks"], "give random, sequential"),
        (None, ["--model", "TF4CTR_DCNv3"], "TF4CTR_DCNv2"),
        (None, ["--output", "."], "is there already"),
        (content(b""), [], "the file is empty"),
        (content(b"item,click\n"), [], "no rows"),
        (content(b"1,2.5,0\n0,3,1\n"), [], "write a header line first"),
        (content(b"item,click\n1,0\n\xff,1\n"), [], "is not UTF-8"),
        (content(b"shop,click\n1,0\n1,1\n"), [], "no column is left"),
        (lambda frame: frame.write_parquet("mine.csv"), [], "mine.csv"),
    ],
)
def test_bad_input_is_one_message_and_writes_nothing(data, frame, capsys, spoil, options, message):
    if spoil is not None:
        spoil(frame)
    label = [] if "--label" in options else ["--label", "click"]
    assert main(["init", "mine.csv", *label, *options]) == 2
    told = capsys.readouterr()
    assert message in told.err and not told.out
    assert [path.name for path in data.iterdir()] == ["mine.csv"]


def test_a_file_that_is_not_there_or_of_another_kind(data, capsys):
    for name, message in [("nine.csv", "no such file"), ("mine.txt", "must end")]:
        (data / "mine.txt").write_text("a,click\n1,0\n")
        assert main(["init", name, "--label", "click"]) == 2
        assert message in capsys.readouterr().err


def test_gzipped_files_are_read(data):
    with gzip.open("mine.csv.gz", "wb") as file:
        file.write((data / "mine.csv").read_bytes())
    (data / "mine.csv").unlink()
    assert main(["init", "mine.csv.gz", "--label", "click"]) == 0


def test_parquet_columns_of_lists_and_bytes(data, frame, capsys):
    frame = frame.with_columns(raw=pl.lit(b"\xff"), lists=pl.concat_list("click"))
    frame.write_parquet("mine.parquet")
    assert main(["init", "mine.parquet", "--label", "lists"]) == 2
    assert "write 0 and 1" in capsys.readouterr().err
    assert main(["init", "mine.parquet", "--label", "click"]) == 0
    assert "raw" in capsys.readouterr().out
