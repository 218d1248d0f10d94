"""The files of a BARS run folder, in the form that BARS' own scripts read.

Those scripts take the last line of environments.txt for FuxiCTR's version, cut the name of the log
at its first dot, take the first ``*_config*`` for the folder of settings, and cut the last column
of results.csv at every ``-`` and ``:``.
"""

import csv
import hashlib
import io
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import yaml

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.leaderboard.protocols import SPLITS, Protocol
from fuxictr_tf4ctr.registry import find_model
from fuxictr_tf4ctr.runs.records import RunRecord, plain
from fuxictr_tf4ctr.settings.keys import DATASET_KEYS
from fuxictr_tf4ctr.settings.writing import as_yaml

ROW_HEADER = "Year,Publication,Model,Paper URL,AUC,Logloss,Running Steps,Contributor"

_BARS = "https://github.com/reczoo/BARS"
_FUXICTR = "https://github.com/reczoo/FuxiCTR"
_DATASETS = "https://github.com/reczoo/Datasets"
# environments.txt's name -> that in a record; FuxiCTR must come last.
_SOFTWARE = {
    "python": "python", "pytorch": "torch", "pandas": "pandas", "numpy": "numpy", "scipy": "scipy",
    "sklearn": "scikit-learn", "pyyaml": "pyyaml", "h5py": "h5py", "tqdm": "tqdm",
    "fuxictr-tf4ctr": "fuxictr-tf4ctr", "fuxictr": "fuxictr",
}  # fmt: skip
_TUNER = "tuner_config_01"
# Stands in a command for the folder of settings, whose name the protocol decides.
_CONFIG = "CONFIG_FOLDER"
_TUNED = re.compile(r"_\d{3}_[0-9a-f]{8}$")


@dataclass(frozen=True)
class Study:
    """What a submission is made of.

    Attributes:
        expid: The experiment, ``<base>_<index>_<hash>``.
        runs: Its finished runs, one per seed.
        tuner_yaml: The tuner file it comes from.
        tuner_csv: Result lines of all points of the tuner file.
        model_config: All its experiments, YAML.
        dataset_config: All its data sets, YAML.
    """

    expid: str
    runs: list[RunRecord]
    tuner_yaml: str
    tuner_csv: str
    model_config: str
    dataset_config: str


def study_of_run(run: RunRecord) -> Study:
    """Make of a single run what a sweep of one point would have left."""
    settings = json.loads(json.dumps(dict(run.settings), default=plain))
    dataset_id = settings["dataset_id"]
    dataset = {key: settings[key] for key in DATASET_KEYS if key in settings}
    model = {
        key: value
        for key, value in settings.items()
        if key not in dataset and key not in ("model_id", "model_root")
    }
    digest = hashlib.md5(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    expid = run.expid if _TUNED.search(run.expid) else f"{run.expid}_001_{digest}"
    tuner = {
        "base_config": "./config/",
        "base_expid": expid,
        "dataset_id": dataset_id,
        "tuner_space": {"seed": [settings["seed"]]},
    }
    return Study(
        expid=expid,
        runs=[run],
        tuner_yaml=as_yaml(tuner),
        tuner_csv=result_line(run, expid),
        model_config=as_yaml({expid: {**model, "dataset_id": dataset_id}}),
        dataset_config=as_yaml({dataset_id: dataset}),
    )


def folder_files(study: Study, protocol: Protocol, problems: Sequence[str]) -> dict[str, str]:
    """Return name and content of every file of the run's folder.

    Args:
        study: What is submitted.
        protocol: Under which protocol.
        problems: Rules it breaks; the README of a draft begins with them.
    """
    first = study.runs[0]
    tuner = f"{model_name(first)}_{protocol.split.name.lower()}_{_TUNER}"
    several = len(study.runs) > 1
    results = "".join(
        (f"seed={run.settings['seed']}," if several else "")
        + result_line(run, study.expid).replace(_CONFIG, tuner)
        for run in study.runs
    )
    log = first.log_file.read_text(encoding="utf-8")
    written = {
        f"{study.expid}.log": log[log.index("Params: {") :] if "Params: {" in log else log,
        "environments.txt": environments_txt(first),
        "results.csv": results,
        f"{tuner}.yaml": study.tuner_yaml,
        f"{tuner}.csv": study.tuner_csv.replace(_CONFIG, tuner),
        f"{tuner}/model_config.yaml": study.model_config,
        f"{tuner}/dataset_config.yaml": _with_bars_paths(study.dataset_config, protocol),
    }
    return written | {"README.md": readme(study, protocol, tuner, written, problems)}


def missing_in_record(run: RunRecord) -> list[str]:
    """Say what environments.txt needs and the record does not have."""
    found = [name for name in ("cpu", "memory_gib", "gpus") if name not in run.machine]
    found += [name for name in _SOFTWARE.values() if name not in run.versions]
    if not found:
        return []
    return [f"{run.json_file} does not tell {', '.join(found)}: an earlier version wrote it"]


def environments_txt(run: RunRecord) -> str:
    """Describe hardware and software of a run, FuxiCTR last."""
    machine, gpu = run.machine, run.settings.get("gpu", -1)
    hardware = {
        "CPU": machine.get("cpu", "not recorded"),
        "GPU": "none" if gpu < 0 else machine["gpus"][gpu],
        "RAM": f"{machine.get('memory_gib', '?')}G",
    }
    software = {"CUDA": machine.get("cuda") or "none"}
    software |= {
        name: run.versions.get(package, "not recorded") for name, package in _SOFTWARE.items()
    }
    lines = ["[Hardware]", *(f"{key}: {value}" for key, value in hardware.items()), ""]
    lines += ["[Software]", *(f"{key}: {value}" for key, value in software.items())]
    return "\n".join(lines) + "\n"


def readme(
    study: Study,
    protocol: Protocol,
    tuner: str,
    written: Mapping[str, str],
    problems: Sequence[str],
) -> str:
    """Write the hands-on guide of the run, with the sections that BARS' guides have."""
    first, name = study.runs[0], protocol.split.name
    model = model_name(first)
    version, fuxictr = first.versions["fuxictr-tf4ctr"], first.versions["fuxictr"]
    hardware, software = written["environments.txt"].split("[Software]\n")
    draft = "".join(f"> - {problem}\n" for problem in problems)
    if problems:
        draft = f"> **A draft, not to be submitted.** It breaks rules of BARS:\n>\n{draft}\n"
    return f"""## {model}_{protocol.bars_id}

{draft}A hands-on guide to run the {model} model on the {name} dataset.

Author: [BARS Benchmark]({_BARS}/blob/main/CITATION)

| [Environments](#Environments) | [Dataset](#Dataset) | [Code](#Code) | [Results](#Results) | \
[Logs](#Logs) |
|:-----------------------------:|:-----------:|:--------:|:--------:|-------|

### Environments
+ Hardware

  ```python
{_indented(hardware.replace("[Hardware]", ""))}
  ```

+ Software

  ```python
{_indented(software)}
  ```

### Dataset
Please refer to [{name}]({_DATASETS}/tree/main/{name.split("_")[0]}/{name}) to get the dataset \
details. Protocol {protocol.bars_id}: `min_categr_count: {protocol.min_categr_count}`, \
`embedding_dim: {protocol.embedding_dim}`.

### Code

We use the {model} model code from fuxictr-tf4ctr {version}, an extension of \
[FuxiCTR-v{fuxictr}]({_FUXICTR}/tree/v{fuxictr}), for this experiment.

Running steps:

1. Install fuxictr-tf4ctr and the dependencies listed in the [environments](#environments).

    ```bash
    pip install fuxictr=={fuxictr} fuxictr-tf4ctr=={version}
    ```

2. Create a data directory and put the downloaded data files in `../data/{name}`.

3. Both `dataset_config.yaml` and `model_config.yaml` files are available in [{tuner}](./{tuner}). \
Please make sure that the data paths in `dataset_config.yaml` are correctly set.

4. Run the following script to start training and evaluation.

    ```bash
    nohup fuxictr run --config {tuner} --expid {study.expid} --gpu 0 > run.log &
    tail -f run.log
    ```

### Results

{_result_table(study.runs)}
### Logs
```python
{written[f"{study.expid}.log"].rstrip()}
```
"""


def leaderboard_row(runs: Sequence[RunRecord], protocol: Protocol, contributor: str) -> str:
    """Return the line of BARS' table: metrics are means over the seeds.

    Args:
        runs: The runs.
        protocol: Their protocol.
        contributor: ``Name`` or ``Name <URL>``.
    """
    model = model_name(runs[0])
    paper = str(getattr(find_model(str(runs[0].settings["model"])), "paper", ""))
    arxiv = re.search(r"(\d\d)\d\d\.\d{5}", "2405.03167" if model.startswith("TF4CTR") else paper)
    found = [[run.test[name] for run in runs if name in run.test] for name in ("AUC", "logloss")]
    means = [f"{statistics.fmean(values):.6f}" if values else "" for values in found]
    steps = f"{_BARS}/tree/main/ranking/ctr/{model}/{model}_{protocol.bars_id}"
    name, _, url = contributor.rstrip("> ").partition("<")
    link = f'<a href="{url.strip()}">{name.strip()}</a>' if url else name.strip()
    row = [
        f"20{arxiv[1]}" if arxiv else "",
        "arXiv" if arxiv else "",
        model,
        f"https://arxiv.org/abs/{arxiv[0]}" if arxiv else "",
        *means,
        steps,
        link,
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(row)
    return text.getvalue()


def model_name(run: RunRecord) -> str:
    """Return the model's name without the module it is from."""
    name = re.split(r"[:.]", str(run.settings["model"]))[-1]
    if not re.fullmatch(r"[\w+]+", name):
        raise SettingsError(f"model {name!r} is no name for a folder of BARS")
    return name


def result_line(run: RunRecord, expid: str) -> str:
    """Return FuxiCTR's result line, its command free of commas and of this machine's paths.

    Args:
        run: A finished run.
        expid: The name it is submitted under.
    """
    command = f"fuxictr run --config {_CONFIG} --expid {expid} --gpu {run.settings.get('gpu', -1)}"
    command += f" --set seed={run.settings['seed']}"
    return replace(run, expid=expid, command=command).csv_line()


def _result_table(runs: Sequence[RunRecord]) -> str:
    metrics, several = list(runs[0].test), len(runs) > 1
    head = ["Runs"] * several + metrics
    lines = [head, [":--------------------:"] * len(head)]
    for number, run in enumerate(runs, start=1):
        lines.append([str(number)] * several + [f"{run.test[m]:.6f}" for m in metrics])
    if several:
        columns = [[run.test[m] for run in runs] for m in metrics]
        lines.append(["Avg", *(f"{statistics.fmean(column):.6f}" for column in columns)])
        lines.append(["Std", *(f"&#177;{statistics.pstdev(column):.8f}" for column in columns)])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"Total {len(runs)} runs:\n\n{table}" if several else table


def _with_bars_paths(dataset_config: str, protocol: Protocol) -> str:
    """Name data as BARS does, beside the code, in place of this machine's paths."""
    sections = yaml.safe_load(dataset_config)
    for section in sections.values():
        section["data_root"] = "../data/"
        for split in SPLITS:
            path = section.get(f"{split}_data")
            if path:
                suffix = str(path).rpartition("/")[2]
                section[f"{split}_data"] = f"../data/{protocol.split.name}/{suffix}"
    return as_yaml(sections)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines())
