"""Load every configuration that FuxiCTR and BARS have published: ``python benchmarks/corpus.py``.

``$BARS_HOME`` is a checkout of reczoo/BARS, ``$FUXICTR_HOME`` one of reczoo/FuxiCTR, whose models
are named; of a corpus that is not at hand the counts of before are kept. Each folder of experiments
and each tuner file is read as ``fuxictr tune --config`` reads it, up to the data, which need not be
there. Refusals are printed; the counts go to ``benchmarks/results/corpus.json``, reason by reason.
"""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.sweep.points import grid
from fuxictr_tf4ctr.sweep.tuner_file import read_tuner

RESULTS = Path(__file__).parent / "results" / "corpus.json"
CORPORA = {
    "BARS": ("BARS_HOME", "ranking/**/"),
    "FuxiCTR's zoo": ("FUXICTR_HOME", "model_zoo/**/"),
    "FuxiCTR's demo": ("FUXICTR_HOME", "demo/**/"),
    "FuxiCTR's experiment": ("FUXICTR_HOME", "experiment/**/"),
}
# That the data are not there, and what stands above a list of faults.
_NO_FAULT = r"- data set .* is not there|the settings of expid"
# TensorFlow's models, which this package does not train.
_FOREIGN = "_tf/"


def sources(root: Path, pattern: str) -> dict[str, list[Path]]:
    """Return the folders of experiments and the tuner files under a folder."""
    folders = {path.parent for path in root.glob(f"{pattern}model_config.yaml")}
    folders |= {path.parent for path in root.glob(f"{pattern}model_config") if path.is_dir()}
    tuners = [path for path in root.glob(f"{pattern}*.yaml") if "tuner_config" in path.name]
    kept = [path.resolve() for path in folders if _FOREIGN not in f"{path}/"]
    return {"folders": sorted(set(kept)), "tuner files": sorted(tuners)}


def problems_of(source: Path) -> tuple[int, Counter[str]]:
    """Load a folder of experiments or a tuner file.

    Args:
        source: The folder or file.

    Returns:
        How many experiments it has, and its problems with how many of them have each; that the
        data are not there is none.
    """
    try:
        points = list(grid(read_tuner(source)))
    except SettingsError as error:
        return 0, Counter([str(error)])
    lines = (line for point in points for line in (point.problem or "").splitlines())
    told = Counter(line.removeprefix("- ") for line in lines if not re.match(_NO_FAULT, line))
    return len(points), told


def _kinds(problems: Iterable[str]) -> set[str]:
    """Tell problems of one kind by one text: names and paths are left out."""
    names = r"'[^']*'|\[.*\]|\(.*\)|\S*/\S*"
    return {re.sub(names, "…", problem.split("\n")[0]) for problem in problems}


def load_all() -> Iterator[tuple[str, dict[str, Any]]]:
    """Load each corpus that is at hand; yield its name and its counts."""
    for name, (variable, pattern) in CORPORA.items():
        if variable not in os.environ:
            print(f"{name}: ${variable} is not set; counts of before", file=sys.stderr)
            continue
        root = Path(os.environ[variable]).expanduser().resolve()
        for kind, paths in sources(root, pattern).items():
            experiments, refused = 0, {}
            for path in paths:
                count, problems = problems_of(path)
                experiments += count
                if problems:
                    told = {text.replace(str(root), "."): n for text, n in problems.items()}
                    refused[str(path.relative_to(root))] = told
            if paths:
                yield (
                    f"{name}: {kind}",
                    {
                        "there": len(paths),
                        "loaded": len(paths) - len(refused),
                        "experiments": experiments,
                        "reasons": dict(
                            Counter(kind for each in refused.values() for kind in _kinds(each))
                        ),
                        "refused": refused,
                    },
                )


def main() -> None:
    """Load all, print what is refused, and keep the counts."""
    table = json.loads(RESULTS.read_text("utf-8"))
    for name, counts in load_all():
        print(f"{name}: {counts['loaded']} of {counts['there']}")
        for path, problems in counts.pop("refused").items():
            print(f"  {path}:", *problems, sep="\n    ")
        table[name] = counts
    RESULTS.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
