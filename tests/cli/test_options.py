"""Options are judged before anything is imported, read or written: exit status 2, one line."""

import pytest

from fuxictr_tf4ctr.cli import main

RUN = ("run", "--expid", "x")
TUNE = ("tune", "--config", "x.yaml")
WRONG = [
    (*RUN, "--workers", "1000000"),
    (*RUN, "--workers", "0"),
    (*RUN, "--timeout", "nan"),
    (*RUN, "--timeout", "inf"),
    (*RUN, "--timeout", "0"),
    (*RUN, "--max-restarts", "-1"),
    (*RUN, "--gpu", "one"),
    (*RUN, "--gpu", "9" * 5000),
    (*TUNE, "--gpu", "0", "-2"),
    (*TUNE, "--seeds", "0"),
    (*TUNE, "--max-points", "1.5"),
    ("compare", "a", "b", "--seed", "-1"),
    ("report", "a", "--seed", str(2**64)),
    ("report", "a", "--resamples", "0"),
    ("decode", "--dataset", "x", "--rows", "0"),
    ("decode", "--dataset", "x", "--first", "-1"),
    ("export", "--run", "x", "--output", "y", "--tolerance", "nan"),
]


@pytest.mark.parametrize("command", WRONG, ids=lambda command: " ".join(command)[:40])
def test_numbers_are_within_bounds(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    *_, said = capsys.readouterr().err.splitlines()
    assert f"argument {command[-2]}" in said or "argument --gpu" in said
    assert "must be a" in said and len(said) < 300
    assert not list(tmp_path.iterdir())
