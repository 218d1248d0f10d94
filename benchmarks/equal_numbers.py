"""The same experiments by FuxiCTR's own scripts and by ``fuxictr run``: equal numbers?

    python benchmarks/equal_numbers.py CHECKOUT [--only EXPID …]

Runs every ``*_test`` experiment of a FuxiCTR checkout's model zoo twice, in a copy of it: by the
``run_expid.py`` beside its configuration, with the checkout's own fuxictr, and by ``fuxictr run``,
with the installed one. Where they differ, FuxiCTR's runs again on two threads: how far rounding
alone takes it from itself. Validation metrics go to ``benchmarks/results/equal_numbers.json``, a
table of them to ``docs/keep_your_run_expid.md``. What the sides are known to do otherwise is left
out, see ``_ALIKE``.
"""

import argparse
import contextlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "equal_numbers.json"
PAGE = ROOT / "docs" / "keep_your_run_expid.md"
MARKS = "<!-- equal numbers: begin -->\n", "<!-- equal numbers: end -->"
# Each side shuffles rows in an order of its own; FuxiCTR's loader draws from the generator of
# dropout; FuxiCTR drops this key of xDeepFM's test, which ``fuxictr run`` reads as what it meant.
_ALIKE = {
    "shuffle: True": "shuffle: False",
    r"(net_\w*dropout): 0\.\d+": r"\1: 0",
    "cin_layer_units:": "cin_hidden_units:",
}
_NONE = "none"
_METRIC = re.compile(r"(\w+): ([\d.]+)")


def experiments(checkout: Path) -> Iterator[tuple[Path, str]]:
    """Folder of the script and expid of every test in PyTorch."""
    for script in sorted(checkout.glob("model_zoo/**/run_expid.py")):
        config = script.parent / "config" / "model_config.yaml"
        if script.parent.name.endswith("_tf") or not config.is_file():
            continue
        for expid in yaml.safe_load(config.read_text("utf-8")):
            if re.search(r"_test\d*$", expid):
                yield script.parent, expid


def by_fuxictr(folder: Path, expid: str) -> None:
    """Run FuxiCTR's script as its users do; it writes a line of results."""
    sys.argv = ["run_expid.py", "--expid", expid, "--gpu", "-1"]
    sys.path.insert(0, str(folder))
    runpy.run_path(str(folder / "run_expid.py"), run_name="__main__")
    line = (folder / "config.csv").read_text("utf-8").splitlines()[-1]
    written = re.search(r"\[val\] (.*?),\[test\]", line)[1]
    print("RESULT", json.dumps({name: float(value) for name, value in _METRIC.findall(written)}))


def by_us(folder: Path, expid: str) -> None:
    """Run the experiment by ``fuxictr run``, from the folder that its paths start from."""
    from fuxictr_tf4ctr.cli import main
    from fuxictr_tf4ctr.runs.records import read_run

    os.chdir(folder)
    runs = folder / "runs" / expid
    code = main(["run", "--config", "config", "--expid", expid, "--set", f"model_root={runs}"])
    if code == 0:
        (record,) = runs.rglob("run.json")
        print("RESULT", json.dumps(read_run(record.parent).valid))


# What runs each side, and on how many threads.
SIDES: dict[str, tuple[Callable[[Path, str], None], int]] = {
    "fuxictr": (by_fuxictr, 1),
    "two threads": (by_fuxictr, 2),
    "ours": (by_us, 1),
}


def run_side(side: str, checkout: Path, only: list[str]) -> None:
    """Run one side of experiments, each in a fork of this process, and print its last lines."""
    # FuxiCTR's own is imported from the checkout, which is on the path of its side.
    if side == "ours":
        import fuxictr_tf4ctr  # noqa: F401  before fuxictr: keeps Ray away
    import fuxictr.pytorch.models  # noqa: F401  once for all

    for folder, expid in experiments(checkout):
        if only and expid not in only:
            continue
        log = Path(tempfile.mkstemp()[1])
        if not (child := os.fork()):
            with log.open("w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            with contextlib.suppress(OSError):
                os.setpgid(0, 0)
            try:
                SIDES[side][0](folder, expid)
            except BaseException as error:
                print("FAILED", type(error).__name__, error)
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)
        lines = log.read_text("utf-8", errors="replace").splitlines()
        log.unlink()
        results = [line.removeprefix("RESULT ") for line in lines if line.startswith("RESULT ")]
        said = [line.replace(f"{checkout}/", "") for line in lines[-1:]]
        entry = {"metrics": json.loads(results[-1])} if results else {"error": said}
        print(json.dumps({"model": folder.name, "expid": expid} | entry), flush=True)


def results_of(side: str, checkout: Path, only: list[str]) -> dict[str, dict]:
    """Return what became of each experiment on one side, by expid."""
    run, threads = SIDES[side]
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "FuxiCTR"
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
        for config in copy.glob("model_zoo/**/model_config.yaml"):
            text = config.read_text("utf-8")
            for written, alike in _ALIKE.items():
                text = re.sub(written, alike, text)
            config.write_text(text, "utf-8")
        others = filter(None, [os.environ.get("PYTHONPATH")])
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT if run is by_us else copy), *others]),
            "FUXICTR_HOME": str(copy),
            "OMP_NUM_THREADS": str(threads),
        }
        command = [sys.executable, __file__, str(copy), "--side", side, "--only", *only]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        found = map(json.loads, done.stdout.decode().splitlines())
        return {each["expid"]: each for each in found}


def compared(checkout: Path, only: list[str]) -> list[dict]:
    """Return of each experiment the metrics of all sides."""
    sides = [results_of(side, checkout, only) for side in ("fuxictr", "ours")]
    rows = [
        {"expid": expid, "fuxictr": sides[0][expid], "ours": sides[1][expid]} for expid in sides[0]
    ]
    apart = {row["expid"]: row for row in rows if difference(row, "ours") not in (None, _NONE)}
    again = results_of("two threads", checkout, list(apart)) if apart else {}
    for expid, result in again.items():
        apart[expid]["two threads"] = result
    return rows


def difference(row: dict, side: str) -> str | None:
    """Say the largest difference of a validation metric from FuxiCTR's; None where one is none."""
    theirs, others = (row.get(each, {}).get("metrics") for each in ("fuxictr", side))
    if not theirs or not others:
        return None
    apart = max(abs(theirs[name] - others[name]) for name in theirs if name in others)
    return _NONE if apart < 1e-6 else f"{apart:.1e}"


def table(rows: list[dict]) -> str:
    """Write the rows as a Markdown table, those that ran in both."""
    lines = [
        "| experiment | AUC, logloss by FuxiCTR | by `fuxictr run` | largest difference | "
        "of FuxiCTR's own, one thread and two |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        apart = difference(row, "ours")
        if apart is None:
            continue
        cells = []
        for side in ("fuxictr", "ours"):
            metrics = row[side]["metrics"]
            cells.append(
                ", ".join(f"{metrics[name]:.6f}" for name in ("AUC", "logloss") if name in metrics)
            )
        cells += [apart, difference(row, "two threads") or ""]
        lines.append(f"| `{row['expid']}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", nargs="*", default=[], metavar="EXPID")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    checkout = arguments.checkout.resolve()
    if arguments.side:
        return run_side(arguments.side, checkout, arguments.only)
    rows = compared(checkout, arguments.only)
    if arguments.only:
        new = {row["expid"]: row for row in rows}
        rows = [new.get(row["expid"], row) for row in json.loads(RESULTS.read_text("utf-8"))]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    before, rest = PAGE.read_text("utf-8").split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    PAGE.write_text(before + MARKS[0] + table(rows) + MARKS[1] + after, encoding="utf-8")


if __name__ == "__main__":
    main()
