"""New data after old: an earlier run's vocabularies, grown by the values that new rows bring.

Every value keeps its id, ``__OOV__`` included; new ones follow, most frequent first. A value too
rare for an id is remembered with its count in ``rare_tokens.parquet``, and counted on later.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from fuxictr.preprocess import FeatureProcessor

from fuxictr_tf4ctr.datasets import manifest
from fuxictr_tf4ctr.datasets.feature_map import read_feature_map
from fuxictr_tf4ctr.datasets.fitted import NAME, SPECIAL, read_encoder
from fuxictr_tf4ctr.datasets.fitting import RARE, ColumnStatistics
from fuxictr_tf4ctr.errors import SettingsError
from fuxictr_tf4ctr.names import shown

# What a column may say otherwise than in the ancestor's data.
_FREE = ("min_categr_count",)


@dataclass(frozen=True)
class Ancestor:
    """The fitted encoder of a run, to be grown.

    Attributes:
        folder: Where the run keeps feature map, vocabularies and encoder.
        refit_normalizers: Whether numbers are normalised by the new data's statistics.
    """

    folder: Path
    refit_normalizers: bool = False

    @cached_property
    def _content(self) -> dict[str, Any]:
        return read_encoder(self.folder)

    @cached_property
    def specs(self) -> dict[str, dict[str, Any]]:
        """Feature -> its specification in the ancestor's feature map."""
        content = read_feature_map(self.folder / "feature_map.json")
        return {name: spec for entry in content["features"] for name, spec in entry.items()}

    def check(self, features: Sequence[Mapping[str, Any]]) -> None:
        """Find columns that are not those the ancestor was trained on.

        Args:
            features: Feature columns of the new data, complete.

        Raises:
            SettingsError: Columns differ; the message has a line for each.
            DataError: The ancestor keeps no fitted encoder.
        """
        then, now = ({each["name"]: each for each in columns if each["active"] is not False}
                     for columns in (self._content["features"], _as_json(features)))  # fmt: skip
        problems = [f"column {name!r} was not there" for name in now if name not in then]
        problems += [f"column {name!r} is not there now" for name in then if name not in now]
        for name in [name for name in now if name in then]:
            for key in sorted((then[name].keys() | now[name].keys()) - {*_FREE}):
                before, after = then[name].get(key), now[name].get(key)
                if before != after:
                    told = f"{shown(before)} then, {shown(after)} now"
                    problems.append(f"column {name!r}: {key}: {told}")
            if "pretrained_emb" in now[name]:
                problems.append(f"column {name!r}: a pretrained_emb cannot grow")
        if not problems and list(then) != list(now):
            problems.append("the columns are in another order")
        if problems:
            raise SettingsError(
                f"{self.folder.parent} cannot be continued from, its columns differ:\n- "
                + "\n- ".join(problems)
            )

    def made_from(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return sources and settings that an encoding grown from it is made from as well."""
        names = ("feature_map.json", "feature_vocab.json", NAME)
        sources = manifest.describe_files([self.folder / name for name in names])
        return {"continue_from": sources}, {"refit_normalizers": self.refit_normalizers}

    def add_counts(self, statistics: ColumnStatistics) -> bool:
        """Add what the ancestor has counted: its vocabularies, and values too rare for them.

        Returns:
            Whether it has counts of rare values.
        """
        rare = self.folder / RARE
        if rare.is_file():
            for (name,), counts in pl.read_parquet(rare).group_by("column"):
                statistics.add_counted(name, counts.select("token", "count"))
        for name, tokenizer in self._content["tokenizers"].items():
            statistics.add_known(
                name, [token for token in tokenizer["vocab"] if token not in SPECIAL]
            )
        return rare.is_file()

    def normalizers(self) -> Mapping[str, Mapping[str, float]]:
        """Return the statistics that numbers are normalised by, by column."""
        return {} if self.refit_normalizers else self._content["normalizers"]

    def grow(self, processor: FeatureProcessor) -> None:
        """Give the values that the ancestor knows their ids, the others those that follow.

        Args:
            processor: Fitted to the new data and the ancestor's counts; its files are written anew.
        """
        specs = processor.feature_map.features
        for name, old in self._content["tokenizers"].items():
            tokenizer, spec = processor.processor_dict[f"{name}::tokenizer"], specs[name]
            if "share_embedding" not in spec:
                ordered = sorted(tokenizer.vocab, key=tokenizer.vocab.get)
                new = [token for token in ordered if token not in old["vocab"]]
                first = max(old["vocab"].values()) + 1
                tokenizer.vocab = old["vocab"] | {token: first + i for i, token in enumerate(new)}
            tokenizer.max_len = old["max_len"]
            if "max_len" in spec:
                spec["max_len"] = old["max_len"]
        for name, spec in specs.items():
            tokenizer = processor.processor_dict.get(f"{name}::tokenizer")
            if "share_embedding" in spec:
                tokenizer.vocab = processor.processor_dict[
                    f"{spec['share_embedding']}::tokenizer"
                ].vocab
            elif "boundaries" in spec:
                spec["boundaries"] = self.specs[name]["boundaries"]
            if "vocab_size" in spec and tokenizer is not None and tokenizer.vocab:
                grown = max(tokenizer.vocab.values()) + 1
                if "share_embedding" not in spec:
                    processor.feature_map.total_features += grown - spec["vocab_size"]
                spec["vocab_size"] = grown
        processor.feature_map.save(processor.json_file)
        processor.save_vocab(processor.vocab_file)


def _as_json(features: Sequence[Mapping[str, Any]]) -> Any:
    return json.loads(json.dumps(features, default=str))
