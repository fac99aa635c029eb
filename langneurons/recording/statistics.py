"""Activation statistics: what every neuron did in every language, and the questions that can be asked of it.

Pure: it needs the recorded files and nothing of the model, so a study can be reread on a laptop.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from langneurons import storage
from langneurons.errors import LanguageError, SiteMismatchError, StaleArtefactError, StatisticsError, unknown
from langneurons.recording.accumulation import SQUARE_UNITS, SUM_UNITS
from langneurons.recording.distributions import ActivationFunction, Histogram, ValueCdf, quantile, rank_error_bound
from langneurons.recording.records import (
    TENSORS,
    LanguageRecord,
    RecordedModel,
    StoredTensors,
    check_held,
    check_optional,
    held,
)
from langneurons.recording.site_values import SiteValues

SCHEMA = "langneurons/activation-statistics/1"
PUBLISHED = "published counts"  # stands for the model where only counts were published


class Responses:
    """How the neurons respond in one language, or in several weighted equally: ``stats["hi"]``, ``stats.pooled()``."""

    def __init__(self, statistics: "ActivationStats", languages: Sequence[str]):
        self._statistics, self.languages = statistics, tuple(languages)

    @property
    def language(self) -> str | None:
        """The language, None for several."""
        return self.languages[0] if len(self.languages) == 1 else None

    def probability(self, threshold: "float | Tensor | SiteValues" = 0.0) -> SiteValues:
        """P(activation > threshold)."""
        return self._labelled(self._averaged(lambda one: self._statistics._probability(one, threshold)))

    def mean(self) -> SiteValues:
        """Mean activation."""
        return self._labelled(self._averaged(self._statistics._mean))

    def mean_magnitude(self) -> SiteValues:
        """Mean of the activation's absolute value."""
        return self._labelled(self._averaged(self._statistics._mean_magnitude))

    def std(self) -> SiteValues:
        """Standard deviation over tokens (of the mixture, where several languages are pooled)."""
        mean = self._averaged(self._statistics._mean)
        square = self._averaged(self._statistics._mean_square)
        return self._labelled((square - mean**2).clamp(min=0).sqrt())

    def minimum(self) -> SiteValues:
        """Smallest activation that occurred."""
        extremes = [self._statistics._tensor(language, "minimum") for language in self.languages]
        return self._labelled(torch.stack(extremes).amin(0))

    def maximum(self) -> SiteValues:
        """Largest activation that occurred."""
        extremes = [self._statistics._tensor(language, "maximum") for language in self.languages]
        return self._labelled(torch.stack(extremes).amax(0))

    def quantile(self, share: float) -> SiteValues:
        """The activation below which ``share`` of the tokens lie.

        Args:
            share: Between 0 and 1.

        Returns:
            One value a neuron, from its histogram; ``rank_error(share)`` says how far off its rank can be.

        Raises:
            StatisticsError: If ``share`` is no probability, or no histograms were recorded.

        Example:
            >>> median = stats["hi"].quantile(0.5)
            >>> median.shape == stats.shape
            True
        """
        _check_share(share)
        for language in self.languages:
            self._statistics._tensor(language, "histogram")
        low, high = self.minimum().values, self.maximum().values
        rows = [
            quantile(self._cdfs(layer), low[layer], high[layer], share) for layer in range(self._statistics.shape[0])
        ]
        values = torch.minimum(torch.maximum(torch.stack(rows), low), high)
        return self._labelled(values.where(~self._exactly_zero(share), 0.0))

    def rank_error(self, share: float) -> SiteValues:
        """The most by which the rank of ``quantile(share)`` can differ from ``share``, whatever the bins hide."""
        values = self.quantile(share).values.double()
        rows = [rank_error_bound(self._cdfs(layer), values[layer], share) for layer in range(self._statistics.shape[0])]
        return self._labelled(torch.stack(rows).where(~self._exactly_zero(share), 0.0))

    def _exactly_zero(self, share: float) -> Bool[Tensor, "layer neuron"]:
        """Where the quantile is known: of units that are never negative and silent on ``share`` of the tokens."""
        active = self._averaged(lambda one: self._statistics._probability(one, 0.0))
        return (self.minimum().values == 0) & (share <= 1 - active)

    def _cdfs(self, layer: int) -> list[ValueCdf]:
        return [self._statistics._cdf(language, layer) for language in self.languages]

    def _averaged(self, one: Callable[[str], Tensor]) -> Tensor:
        total = one(self.languages[0])
        for language in self.languages[1:]:
            total = total + one(language)
        return total / len(self.languages)

    def _labelled(self, values: Tensor) -> SiteValues:
        return SiteValues(values.float(), self._statistics.site, self._statistics.fingerprint, self.language)


@dataclass(frozen=True, eq=False)
class ActivationStats:
    """What every neuron did in every language, recorded once; every score comes from here without the model.

    Attributes:
        model: What is known of the model.
        context_length: Positions a block had.
        records: Per site and language, what was recorded.

    Example:
        >>> stats.languages
        ('en', 'hi', 'zh')
        >>> stats.probability().shape[0]
        3
    """

    model: RecordedModel
    context_length: int
    records: Mapping[str, Mapping[str, LanguageRecord]]

    @property
    def sites(self) -> tuple[str, ...]:
        """The recorded sites."""
        return tuple(self.records)

    @property
    def site(self) -> str:
        """The site that questions are answered for: the first one, see ``at``."""
        return self.sites[0]

    @property
    def fingerprint(self) -> str:
        """What the values at the site come from: the model's weights, at a site of features with its dictionaries."""
        return self.model.fingerprint_at(self.site)

    @property
    def of_features(self) -> dict[str, str]:
        """Recorded sites of features, and the fingerprint of weights and dictionaries that each comes from."""
        return {site: found for site, found in self.model.of_features.items() if site in self.records}

    @property
    def languages(self) -> tuple[str, ...]:
        """The recorded languages."""
        return tuple(self.records[self.site])

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and neurons a layer at the site."""
        layers, neurons = self._tensor(self.languages[0], "active").shape[1:]
        return layers, neurons

    @property
    def tokens(self) -> Int[Tensor, " language"]:
        """Counted tokens of each language."""
        return torch.stack([record.tokens.sum() for record in self.records[self.site].values()])

    def __repr__(self) -> str:
        layers, neurons = self.shape
        counted = ", ".join(f"{language} {int(n):,}" for language, n in zip(self.languages, self.tokens, strict=True))
        return (
            f"ActivationStats of {self.model.name}: {layers} layers x {neurons} neurons at {', '.join(self.sites)}; "
            f"counted tokens {counted}"
        )

    def at(self, site: str) -> "ActivationStats":
        """The statistics of one recorded site.

        Raises:
            SiteMismatchError: If it was not recorded.
        """
        if site not in self.records:
            raise SiteMismatchError(unknown("site", site, self.records))
        return replace(self, records={site: self.records[site]})

    def __getitem__(self, language: str) -> Responses:
        return Responses(self.select([language]), [language])

    def pooled(self) -> Responses:
        """All languages as one, each weighted equally."""
        return Responses(self, self.languages)

    def select(self, languages: Iterable[str]) -> "ActivationStats":
        """Only some languages, in the order given.

        Raises:
            LanguageError: If one was not recorded.
        """
        chosen = list(languages)
        for language in chosen:
            if language not in self.languages:
                raise LanguageError(unknown("language", language, self.languages))
        if not chosen:
            raise LanguageError(f"No language was given. Possible: {', '.join(self.languages)}.")
        return replace(self, records={s: {one: r[one] for one in chosen} for s, r in self.records.items()})

    def probability(self, threshold: "float | Tensor | SiteValues" = 0.0) -> Float[Tensor, "language layer neuron"]:
        """P(activation > threshold) of every neuron in every language.

        Args:
            threshold: A number, one per neuron, or SiteValues of the same site and model. At 0 the counts are exact;
                elsewhere the histogram answers.

        Returns:
            Probabilities in float64.

        Raises:
            StatisticsError: If no histograms were recorded and the threshold is not 0.
            SiteMismatchError: If the threshold belongs to another site or model.
        """
        return torch.stack([self._probability(language, threshold) for language in self.languages])

    def mean(self) -> Float[Tensor, "language layer neuron"]:
        """Mean activation over counted tokens."""
        return torch.stack([self._mean(language) for language in self.languages])

    def mean_magnitude(self) -> Float[Tensor, "language layer neuron"]:
        """Mean absolute activation over counted tokens."""
        return torch.stack([self._mean_magnitude(language) for language in self.languages])

    def std(self) -> Float[Tensor, "language layer neuron"]:
        """Standard deviation over counted tokens."""
        return torch.stack([self[language].std().values for language in self.languages])

    def quantile(self, share: float) -> Float[Tensor, "language layer neuron"]:
        """The ``share``-quantile of every neuron in every language."""
        return torch.stack([self[language].quantile(share).values for language in self.languages])

    def histogram(self, language: str, neuron: tuple[int, int]) -> tuple[Float[Tensor, " edge"], Int[Tensor, " bin"]]:
        """One neuron's histogram in one language.

        Args:
            language: A recorded language.
            neuron: Layer and index.

        Returns:
            Bin edges and counts: in z at ``pre`` and ``act``, in activation values at ``post`` and ``head``.
        """
        layer, index = self.check_neuron(neuron)
        whole = self.select([language])._histogram(language, layer)
        one = Histogram(*(getattr(whole, field.name)[index : index + 1] for field in fields(whole)))
        edges = one.edges()[0]
        scale = self.records[self.site][language].tensors.get("scale")
        return (edges if scale is None else torch.sinh(edges) * scale[layer, index].double()), one.counts[0]

    def edges_fingerprint(self) -> str:
        """Identify the histogram edges of every site and language."""
        parts = []
        for site, records in self.records.items():
            for language, record in sorted(records.items()):
                grid = record.grid()
                parts += [site, language, grid.width.numpy().tobytes(), grid.first.numpy().tobytes()]
                parts += [] if grid.scale is None else [grid.scale.numpy().tobytes()]
        return storage.fingerprint(*parts)

    def check_neuron(self, neuron: tuple[int, int]) -> tuple[int, int]:
        """Return a neuron's layer and index.

        Raises:
            StatisticsError: If the model has no such neuron.
        """
        (layer, index), (layers, neurons) = neuron, self.shape
        if not (0 <= layer < layers and 0 <= index < neurons):
            raise StatisticsError(
                f"There is no neuron {(layer, index)}: layers go from 0 to {layers - 1}, "
                f"neurons from 0 to {neurons - 1}."
            )
        return layer, index

    def output_norm(self) -> Float[Tensor, "layer neuron"]:
        """Norm of each neuron's output weights.

        Raises:
            StatisticsError: For published counts, which do not tell.
        """
        if self.site not in self.model.output_norm:
            raise StatisticsError("Published counts do not hold the model's output weights: record the model.")
        return self.model.output_norm[self.site]

    def fold_tokens(self, language: str) -> Int[Tensor, " fold"]:
        """Counted tokens of each document fold."""
        return self.records[self.site][language].tokens

    def fold_probability(self, language: str) -> Float[Tensor, "fold layer neuron"]:
        """P(activation > 0) in each document fold; NaN in a fold without tokens."""
        return self._tensor(language, "active").double() / self.fold_tokens(language)[:, None, None]

    def fold_mean(self, language: str) -> Float[Tensor, "fold layer neuron"]:
        """Mean activation in each document fold; NaN in a fold without tokens."""
        unit = self._units(language) * 2.0**-SUM_UNITS
        return self._tensor(language, "sum").double() * unit / self.fold_tokens(language)[:, None, None]

    @property
    def also(self) -> tuple[str, ...]:
        """The optional statistics that every language holds at the site, see ``record(also=...)``."""
        of_each = [set(held(record.tensors)) for record in self.records[self.site].values()]
        return check_optional(set.intersection(*of_each))

    def sentence_means(self, language: str, layer: int) -> Float[Tensor, "sentence neuron"]:
        """Mean activation of a layer's neurons over each document that was kept by itself.

        Raises:
            StatisticsError: If it was not recorded with ``also=("sentence",)``.

        Example:
            >>> corpus = ln.load_corpus("babel", ["en", "hi"])
            >>> size = {"tokens_per_language": 500, "context_length": 64, "sentences": 20}
            >>> recorded = ln.record(model, corpus, also=["sentence"], **size, progress=False)
            >>> len(recorded.sentence_means("hi", layer=0))
            20
        """
        sums, tokens = self._tensor(language, "sentence_sum"), self._tensor(language, "sentence_tokens")
        unit = self._units(language)[layer] * 2.0**-SUM_UNITS
        return sums[:, layer].double() * unit / tokens[:, None]

    def relevance(self) -> Float[Tensor, "language layer neuron"]:
        """Mean over counted tokens of abs(activation x slope of the loss in it), in nats.

        Raises:
            StatisticsError: If it was not recorded with ``also=("gradient",)``.
        """
        tokens = [self.fold_tokens(language) for language in self.languages]
        per_fold = [self.fold_relevance(language).nan_to_num(nan=0.0) for language in self.languages]
        return torch.stack(
            [torch.einsum("fln,f->ln", r, n.double()) / n.sum() for r, n in zip(per_fold, tokens, strict=True)]
        )

    def fold_relevance(self, language: str) -> Float[Tensor, "fold layer neuron"]:
        """The relevance in each document fold; NaN in a fold without tokens."""
        unit = self._tensor(language, "relevance_unit").double() * 2.0**-SUM_UNITS
        return self._tensor(language, "relevance_sum").double() * unit / self.fold_tokens(language)[:, None, None]

    def folds(self, n: int) -> "list[ActivationStats]":
        """Split by document into ``n`` parts: counts above zero and sums, without histograms.

        Args:
            n: Number of parts, a divisor of 20.

        Raises:
            StatisticsError: If ``n`` does not divide the recorded folds.
        """
        recorded = len(self.fold_tokens(self.languages[0]))
        if n < 1 or recorded % n:
            raise StatisticsError(f"{recorded} document folds were recorded: they cannot be grouped into {n} parts.")
        return [
            self._map(lambda record, part=part: record.fold(range(part, recorded, n)))  # pyright: ignore
            for part in range(n)
        ]

    def __add__(self, other: "ActivationStats") -> "ActivationStats":
        """Merge: languages of both; a language in both is added, exactly.

        Raises:
            StaleArtefactError: If model, site or context length differ.
            StatisticsError: If edges differ or a block would be counted twice.
        """
        mismatches = [
            f"{what}: {mine} and {theirs}"
            for what, mine, theirs in (
                ("model", self.model.fingerprint[:8], other.model.fingerprint[:8]),
                ("dtype", self.model.dtype, other.model.dtype),
                ("sites", self.sites, other.sites),
                ("features", self.of_features, other.of_features),
                ("context length", self.context_length, other.context_length),
            )
            if mine != theirs
        ]
        if mismatches:
            raise StaleArtefactError(f"These statistics cannot be added; they differ in {'; '.join(mismatches)}.")
        records = {}
        for site, mine in self.records.items():
            merged = dict(mine)
            for language, record in other.records[site].items():
                merged[language] = merged[language] + record if language in merged else record
            records[site] = merged
        return replace(self, records=records)

    @classmethod
    def from_counts(
        cls,
        active: Int[Tensor, "language layer neuron"],
        tokens: Int[Tensor, " language"],
        languages: Sequence[str],
        site: str = "act",
    ) -> "ActivationStats":
        """Statistics from published counts.

        Args:
            active: How often each neuron was above zero.
            tokens: Tokens counted a language.
            languages: Their codes.
            site: Where it was counted.

        Raises:
            StatisticsError: If shapes do not fit or a count exceeds its tokens.

        Example:
            >>> counts = torch.tensor([[[3, 0]], [[1, 4]]])
            >>> ActivationStats.from_counts(counts, torch.tensor([4, 4]), ["en", "hi"]).probability().tolist()
            [[[0.75, 0.0]], [[0.25, 1.0]]]
        """
        if not len(active) == len(tokens) == len(languages):
            raise StatisticsError(
                f"Counts for {len(active)} languages, tokens for {len(tokens)} and {len(languages)} language codes "
                "were given: their numbers must agree."
            )
        if bool((active > tokens[:, None, None]).any()) or bool((active < 0).any()):
            raise StatisticsError("A neuron is counted more often than its language has tokens, or less than never.")
        records = {
            language: LanguageRecord(tokens[i : i + 1].long(), {"active": active[i : i + 1]})
            for i, language in enumerate(languages)
        }
        return cls(RecordedModel(PUBLISHED, PUBLISHED, "unknown", gated=True), 0, {site: records})

    def save(self, folder: str | Path) -> Path:
        """Write everything to a folder: one safetensors file a language and site, one JSON.

        Returns:
            The folder.
        """
        folder = Path(folder)
        for language in self.languages:
            if not storage.names_a_file(language):
                raise StatisticsError(f"Languages become file names, which {language!r:.60} must not.")
        files = {
            f"{language}.{site}.safetensors": record.tensors
            for site, records in self.records.items()
            for language, record in records.items()
        }
        checksums = {name: storage.write_tensors(folder / name, tensors) for name, tensors in files.items()}
        checksums["model.safetensors"] = storage.write_tensors(folder / "model.safetensors", self.model.tensors())
        storage.write_json(folder / "statistics.json", SCHEMA, {**self.manifest(), "checksums": checksums})
        return folder

    def manifest(self) -> dict[str, Any]:
        """What the JSON file says: model, settings, languages, tokens a fold and what they were counted on."""
        return {
            "model": {
                **{name: getattr(self.model, name) for name in ("name", "fingerprint", "dtype", "gated")},
                **({"of_features": self.of_features} if self.of_features else {}),
            },
            "context_length": self.context_length,
            "sites": list(self.sites),
            "order": list(self.languages),
            "languages": {
                language: {
                    "tokens": record.tokens.tolist(),
                    "sources": {source: [list(pair) for pair in pairs] for source, pairs in record.sources.items()},
                }
                for language, record in self.records[self.site].items()
            },
        }

    @classmethod
    def load(cls, folder: str | Path) -> "ActivationStats":
        """Open saved statistics; a language's file is verified and memory-mapped when it is first used.

        Raises:
            StorageError: If the folder holds no statistics.
            CorruptArtefactError: If a file is truncated or changed (when it is first used).
        """
        folder = Path(folder)
        content = storage.read_json(folder / "statistics.json", SCHEMA)
        with storage.understood(folder / "statistics.json"):
            checksums = content["checksums"]
            of_model = storage.read_tensors(folder / "model.safetensors", checksums["model.safetensors"])
            inputs, outputs = of_model.pop("act_fn.inputs", None), of_model.pop("act_fn.outputs", None)
            act_fn = None if inputs is None or outputs is None else ActivationFunction(inputs, outputs)
            model = RecordedModel(**content["model"], output_norm=of_model, act_fn=act_fn)
            records = {
                site: {
                    language: _stored_record(
                        folder / (name := f"{language}.{site}.safetensors"),
                        checksums[name],
                        content["languages"][language],
                    )
                    for language in content["order"]
                }
                for site in content["sites"]
            }
            return cls(model, content["context_length"], records)

    def _map(self, change: Callable[[LanguageRecord], LanguageRecord]) -> "ActivationStats":
        return replace(
            self, records={s: {name: change(one) for name, one in r.items()} for s, r in self.records.items()}
        )

    def _tensor(self, language: str, name: str) -> Tensor:
        tensors = self.records[self.site][language].tensors
        if name not in tensors:
            check_held([TENSORS[name]] if name in TENSORS else [], tensors)
            raise StatisticsError(
                f"These statistics hold no {name} (they are published counts or single folds): "
                "they answer probability(0)" + (" and mean()." if "sum" in tensors else ".")
            )
        return tensors[name]

    def _units(self, language: str) -> Tensor:
        self._tensor(language, "width")
        return self.records[self.site][language].grid().units

    def _probability(self, language: str, threshold: "float | Tensor | SiteValues") -> Tensor:
        values = self._threshold(threshold)
        tokens = self.fold_tokens(language).sum()
        above_zero = self._tensor(language, "active").sum(0, dtype=torch.int64).double() / tokens
        if not bool(values.any()):
            return above_zero
        rows = [1 - self._cdf(language, layer)(values[layer]) for layer in range(self.shape[0])]
        return torch.where(values == 0, above_zero, torch.stack(rows))

    def _threshold(self, threshold: "float | Tensor | SiteValues") -> Tensor:
        if isinstance(threshold, SiteValues):
            if (threshold.site, threshold.model) != (self.site, self.fingerprint):
                raise SiteMismatchError(
                    f"The threshold belongs to site {threshold.site!r} of model {threshold.model[:8]}, "
                    f"these statistics to site {self.site!r} of model {self.fingerprint[:8]}."
                )
            threshold = threshold.values
        values = torch.as_tensor(threshold, dtype=torch.float64)
        if values.ndim and tuple(values.shape) != self.shape:
            raise StatisticsError(f"A threshold is a number or has shape {self.shape}, not {tuple(values.shape)}.")
        return values.expand(self.shape)

    def _mean(self, language: str) -> Tensor:
        unit = self._units(language) * 2.0**-SUM_UNITS
        return self._tensor(language, "sum").sum(0).double() * unit / self.fold_tokens(language).sum()

    def _mean_magnitude(self, language: str) -> Tensor:
        unit = self._units(language) * 2.0**-SUM_UNITS
        return self._tensor(language, "absolute").double() * unit / self.fold_tokens(language).sum()

    def _mean_square(self, language: str) -> Tensor:
        unit = self._units(language) ** 2 * 2.0**-SQUARE_UNITS
        return self._tensor(language, "squares").double() * unit / self.fold_tokens(language).sum()

    def _histogram(self, language: str, layer: int) -> Histogram:
        names = ("histogram", "width", "first", "coordinate_minimum", "coordinate_maximum")
        return Histogram(*(self._tensor(language, name)[layer] for name in names))

    def _cdf(self, language: str, layer: int) -> ValueCdf:
        scale = self.records[self.site][language].tensors.get("scale")
        act_fn = self.model.act_fn if self.site == "act" else None
        return ValueCdf(self._histogram(language, layer), None if scale is None else scale[layer], act_fn)


def _stored_record(path: Path, checksum: str, about: Mapping[str, Any]) -> LanguageRecord:
    sources = {source: tuple((start, stop) for start, stop in ranges) for source, ranges in about["sources"].items()}
    return LanguageRecord(torch.tensor(about["tokens"]), StoredTensors(path, checksum), sources)


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise StatisticsError(f"A quantile lies between 0 and 1, not at {share}.")
