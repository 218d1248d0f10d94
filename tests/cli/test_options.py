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


# A command, what its message begins with, and words that give the options their effect.
IDLE = [
    ((*TUNE, "--trials", "3", "--no-prune"), "--trials, --no-prune are for", "--search tpe"),
    (
        (*TUNE, "--search", "tpe", "--tag", "1", "--exclude", "2", "--max-points", "9"),
        "--tag, --exclude, --max-points are for --search grid",
        "--search grid",
    ),
    ((*TUNE, "--best", "2"), "--best is for --seeds 2 or more", "--seeds 2"),
    ((*RUN, "--max-restarts", "1"), "--max-restarts is for --workers", "--workers 2"),
    (("evaluate", "--run", "x", "--skip-bad-rows"), "--skip-bad-rows is for", "--input y"),
    (("encode", "--dataset", "x", "--address", "y"), "--address is for --engine ray", ""),
    (("results", "--compare", "a", "b", "--where", "c=1"), "--where is for the table", ""),
    (("results", "--paired", "a", "b", "--sort", "c", "--descending"), "--sort, --descending", ""),
]


@pytest.mark.parametrize(("command", "message", "needed"), IDLE, ids=[case[1] for case in IDLE])
def test_options_without_effect_are_refused(
    tmp_path, monkeypatch, capsys, command, message, needed
):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fuxictr: {message}") and len(said.splitlines()) == 1
    if needed:
        assert main([*command, *needed.split()]) == 2  # for what is not there
        assert message not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
