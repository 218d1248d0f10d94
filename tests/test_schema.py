"""Kinds: every problem at once, the nearest name, short messages, and no exception ever."""

import pytest

from fuxictr_tf4ctr.errors import DataError
from fuxictr_tf4ctr.schema import (
    ANYTHING,
    FLAG,
    NUMBER,
    POSITIVE,
    TEXT,
    TEXTS,
    AnyOf,
    Key,
    ListOf,
    Record,
    name_of,
    one_of,
    read_json,
    whole,
)

COLUMN = Record({"name": AnyOf(TEXT, TEXTS), "type": name_of("type", ("numeric", "meta"))})
FILE = Record(
    {
        "rows": whole(1, 100),
        "shares": Key(ListOf(NUMBER, least=1)),
        "mode": Key(one_of("max", "min"), default="max"),
        "columns": Key(AnyOf(ListOf(COLUMN), COLUMN), "What is read"),
        "weights": Key(Record({}, others=POSITIVE)),
        "keep": Key(FLAG, default=True),
    }
)


def hostile() -> list:
    """Values that a file, or a caller, may hold where something else is meant."""
    circle: dict = {}
    circle["rows"] = circle["columns"] = circle
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    numbers = [10**5000, float("nan"), -1, True]
    mappings = [{1: 2}, {(1, 2): [3]}, {"columns": {"name": {}}}, {"mode": []}]
    return [None, [], {}, "", "x" * 10**6, object(), circle, deep, *numbers, *mappings]


@pytest.mark.parametrize("value", hostile(), ids=lambda value: type(value).__name__)
def test_no_value_raises_and_no_message_is_long(value):
    for judged in (value, {"rows": value, "columns": [{"name": value, "type": value}]}):
        problems = FILE.problems(judged, "file: ")
        assert problems and all(0 < len(problem) < 500 for problem in problems)


def test_all_problems_at_once_each_with_its_place():
    problems = FILE.problems(
        {
            "rows": True,
            "shares": [0.5, "x"],
            "mode": "maximum",
            "columns": [{"name": "a", "type": "numeric"}, {"name": ["b", 3], "type": "numerc"}],
            "weights": {"a": 1, "b": 0},
            "keep": None,
            "row": 3,
        },
        "run.json: ",
    )
    assert problems == [
        "run.json: rows=True must be a whole number from 1 to 100",
        "run.json: shares[1]='x' must be a number",
        "run.json: mode='maximum' must be one of max, min",
        "run.json: columns[1].name[1]=3 must be a text",
        "run.json: columns[1].type: unknown type 'numerc'; did you mean 'numeric'?",
        "run.json: weights.b=0 must be a number > 0",
        "run.json: keep=None must be true or false",
        "run.json: unknown key 'row'; did you mean 'rows'?",
    ]


def test_what_is_right_has_no_problems():
    assert FILE.problems({"rows": 1}) == []
    column = {"name": ["a", "b"], "type": "meta"}
    assert FILE.problems({"rows": 1, "columns": column, "shares": None, "weights": {}}) == []


def test_a_required_key_says_what_it_means():
    record = Record({"rows": whole(1), "more": ANYTHING})
    assert record.problems({}) == ["rows is missing", "more is missing"]
    assert record.problems([]) == ["value=[] must be a mapping with rows, more"]


def test_many_problems_are_cut_off():
    assert len(ListOf(TEXT).problems([0] * 10**5, "names")) < 30


@pytest.mark.parametrize("text", ["{", "[" * 10**5, '{"rows": 0}', "\x00", "3"])
def test_json_files_are_refused_by_name(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"(?s)run\.json.*train it again"):
        read_json(path, FILE, "train it again")
    path.write_text('{"rows": 7}')
    assert read_json(path, FILE, "train it again") == {"rows": 7}
