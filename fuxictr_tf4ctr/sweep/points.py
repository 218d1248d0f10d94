"""The points of a tuner space: FuxiCTR's order and names, without its lost experiments.

FuxiCTR names an experiment after the md5 of the *sorted characters* of its parameters, so that
``[400, 200]`` and ``[200, 400]`` get one name; of data sets that collide it silently keeps one.
Here a name that FuxiCTR gives is kept, and where two different things would share it, the later one
gets the md5 of the text itself.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from fuxictr.utils import print_to_json

from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.runs.experiment import check_workers
from fuxictr_tf4ctr.settings.keys import DATASET_KEYS
from fuxictr_tf4ctr.settings.published import is_published, twin_params
from fuxictr_tf4ctr.settings.reading import Settings, validated
from fuxictr_tf4ctr.sweep.tuner_file import Tuner, ranges


class Job(NamedTuple):
    """One run of a sweep: an experiment under a seed."""

    expid: str
    dataset_id: str
    seed: int


@dataclass(frozen=True)
class Point:
    """One experiment of a sweep.

    Attributes:
        expid: ``<base>_<index>_<hash>``.
        model: Its model section, in our spelling.
        dataset: The section of its data set.
        values: What the space's keys are here.
        settings: Its settings, None where they are not valid.
        problem: Why they are not valid, else None.
    """

    expid: str
    model: dict[str, Any]
    dataset: dict[str, Any]
    values: dict[str, Any]
    settings: Settings | None
    problem: str | None = None

    @property
    def dataset_id(self) -> str:
        """Its data set's id, hash included."""
        return self.model["dataset_id"]

    @property
    def job(self) -> Job:
        """Its run, under the seed of its settings."""
        return Job(self.expid, self.dataset_id, self.settings["seed"])

    @property
    def key(self) -> str:
        """Two points of one key are the same experiment under two names."""
        return json.dumps([self.model, self.dataset], default=str)


class PointMaker:
    """Makes the points of a sweep and keeps their names apart.

    Args:
        tuner: The tuner file.
    """

    def __init__(self, tuner: Tuner) -> None:
        self.tuner = tuner
        self._named: dict[tuple[str, str], str] = {}  # (name's head, hash) -> what it stands for

    def point(self, index: int, values: Mapping[str, Any]) -> Point:
        """Make the point at which the space's keys have these values.

        Args:
            index: Its number in the sweep, from 1.
            values: Key of the space -> value.
        """
        tuner = self.tuner
        own = dataset_keys(tuner)
        dataset = tuner.dataset | {key: values[key] for key in values if key in own}
        model = tuner.model | {
            key: values[key] for key in values if key in tuner.model or key not in own
        }
        model["dataset_id"] = self._dataset_id(dataset)
        expid = f"{tuner.base_expid}_{index:03d}_{self._hash(tuner.base_expid, model)}"
        return self._judged(expid, model, dataset, values)

    def listed(self) -> Iterator[Point]:
        """Make the points of a folder that lists them; what differs among them is varied."""
        sections = {e: model | data for e, (model, data) in self.tuner.listed.items()}
        written: dict[str, set[str]] = {}
        for key, value in ((k, v) for section in sections.values() for k, v in section.items()):
            written.setdefault(key, set()).add(print_to_json({key: value}))
        varied = [key for key, texts in written.items() if len(texts) > 1 and key != "dataset_id"]
        for expid, (model, dataset) in self.tuner.listed.items():
            values = {key: sections[expid].get(key) for key in varied}
            if dataset:
                yield self._judged(expid, model, dataset, values)
            else:
                problem = f"dataset_id {model['dataset_id']!r} has no section in dataset_config"
                yield Point(expid, model, dataset, values, None, problem)

    def _judged(
        self, expid: str, model: dict[str, Any], dataset: dict[str, Any], values: Mapping[str, Any]
    ) -> Point:
        tuner = self.tuner
        if is_published(model):
            model = twin_params(model)
        params = {**model, **dataset, "dataset_id": model["dataset_id"], "model_id": expid}
        settings, problem = None, None
        try:
            settings = validated(expid, params, tuner.config_dir, tuner.checkout)
            check_workers(settings, 1)
        except SettingsError as error:
            problem = str(error)
        return Point(expid, model, dataset, dict(values), settings, problem)

    def _dataset_id(self, dataset: Mapping[str, Any]) -> str:
        name = self.tuner.dataset_id
        # Parquet files without columns are FuxiCTR's encoded ones, as in a run.
        as_parquet = dataset.get("data_format") == "parquet" and not dataset.get("feature_cols")
        encoded_already = as_parquet or dataset.get("data_format") in ("npz", "h5")
        if not encoded_already and dataset.get("rebuild_dataset") is not False:
            return f"{name}_{self._hash(name, dataset)}"
        text = print_to_json(dataset)
        if self._named.setdefault((name, ""), text) != text:
            raise SettingsError(
                f"{self.tuner.file}: the data set {name} is encoded already, so that the space "
                "cannot vary its keys; leave only model keys in it"
            )
        return name

    def _hash(self, head: str, section: Mapping[str, Any]) -> str:
        text = print_to_json(section)
        fuxictrs = _md5("".join(sorted(text)))
        return fuxictrs if self._named.setdefault((head, fuxictrs), text) == text else _md5(text)


def grid_size(tuner: Tuner) -> int:
    """Return how many points the grid has.

    Raises:
        SettingsError: The space has ranges, of which there is no grid.
    """
    found = ranges(tuner.space)
    if found:
        raise SettingsError(
            f"{tuner.file}: {', '.join(found)}: a grid needs lists; search ranges with "
            "--search tpe or --search random"
        )
    return len(tuner.listed) or math.prod(len(values) for values in tuner.space.values())


def grid(tuner: Tuner) -> Iterator[Point]:
    """Enumerate the grid in FuxiCTR's order; a point that repeats an earlier one is left out."""
    maker, seen = PointMaker(tuner), set()
    if tuner.listed:
        yield from maker.listed()
        return
    # A key that a data set and a model both have varies with the data set.
    own = dataset_keys(tuner)
    order = [key for key in (*tuner.model, *tuner.space) if key in tuner.space and key not in own]
    order += [key for key in (*tuner.dataset, *tuner.space) if key in own]
    order = list(dict.fromkeys(order))
    for index, choice in enumerate(product(*(tuner.space[key] for key in order)), start=1):
        point = maker.point(index, dict(zip(order, choice, strict=True)))
        if point.key not in seen:
            seen.add(point.key)
            yield point


def dataset_keys(tuner: Tuner) -> list[str]:
    """Return the keys of the space that belong to the data set."""
    return [
        key
        for key in tuner.space
        if key in tuner.dataset or (key in DATASET_KEYS and key not in tuner.model)
    ]


def _md5(text: str) -> str:
    return hashlib.md5(text.encode("utf-8")).hexdigest()[:8]
