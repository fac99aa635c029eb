"""Activation statistics: what every neuron did in every language, and the questions that can be asked of it.

Pure: it needs the recorded files and nothing of the model, so a study can be reread on a laptop.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from langneurons import storage
from langneurons.corpora.languages import label_of
from langneurons.errors import (
    LanguageError,
    SiteMismatchError,
    StaleArtefactError,
    StatisticsError,
    check_kind,
    unknown,
    warn_user,
)
from langneurons.recording.accumulation import SUM_UNITS
from langneurons.recording.counts import checked_counts, read_counts
from langneurons.recording.distributions import Histogram, ValueCdf
from langneurons.recording.records import (
    ROUTER_SITES,
    LanguageRecord,
    RecordedModel,
    check_manifest,
    held,
    stored_record,
    weighted_mean,
)
from langneurons.recording.site_values import RecordedResponses, Responses, Threshold
from langneurons.settings import whole_number
from langneurons.storage.objects import JsonObject
from langneurons.storage.presenting import Table
from langneurons.storage.result import Result

PUBLISHED = "published counts"  # stands for the model where only counts were published


@dataclass(frozen=True, eq=False, repr=False)
class ActivationStats(Result, kind="activation-statistics", file="statistics"):
    """What every neuron did in every language, recorded once; every score comes from here without the model.

    Attributes:
        model: What is known of the model.
        context_length: Positions of a block.
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
        fingerprints = self.model.of_features
        return {site: fingerprint for site, fingerprint in fingerprints.items() if site in self.records}

    @property
    def languages(self) -> tuple[str, ...]:
        """The recorded languages."""
        return tuple(self.records[self.site])

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and neurons per layer at the site."""
        return self._of(self.languages[0]).shape

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

    def table(self) -> Table:
        """Counted tokens of every language."""
        rows = {"language": self.languages, "counted tokens": self.tokens.tolist()}
        return Table(pd.DataFrame(rows), title=repr(self))

    def at(self, site: str) -> "ActivationStats":
        """The statistics of one recorded site.

        Raises:
            SiteMismatchError: If it was not recorded.
        """
        if site not in self.records:
            raise SiteMismatchError(unknown("site", site, self.records))
        return replace(self, records={site: self.records[site]})

    def __getitem__(self, language: str) -> Responses:
        return self.select([language]).pooled()

    def pooled(self) -> Responses:
        """All languages as one, each weighted equally."""
        return Responses({language: self._of(language) for language in self.languages})

    def select(self, languages: Iterable[str]) -> "ActivationStats":
        """Only some languages, in the order given.

        Raises:
            LanguageError: If one was not recorded.
        """
        languages = [label_of(language, self.languages) for language in languages]
        if not languages:
            raise LanguageError(f"No language was given. Possible: {', '.join(self.languages)}.")
        records = {site: {language: of[language] for language in languages} for site, of in self.records.items()}
        return replace(self, records=records)

    def probability(self, threshold: Threshold = 0.0) -> Float[Tensor, "language layer neuron"]:
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
        return torch.stack([self._of(language).probability(threshold) for language in self.languages])

    def mean(self) -> Float[Tensor, "language layer neuron"]:
        """Mean activation over counted tokens."""
        return torch.stack([self._of(language).mean() for language in self.languages])

    def mean_magnitude(self) -> Float[Tensor, "language layer neuron"]:
        """Mean absolute activation over counted tokens."""
        return torch.stack([self._of(language).mean_magnitude() for language in self.languages])

    def write(self, language: str) -> Float[Tensor, "layer neuron"]:
        """How much each neuron writes into the residual stream: the mean length of the vector that it adds.

        That is mean |act x up| x norm of the output weights at ``act`` and ``up`` of a gated MLP, and mean |value| x
        norm at other sites (``q`` and ``k`` write nothing by themselves, and their norm counts as 1); at routers it is
        how often an expert is chosen. Statistics of version 0.1.0 do not know ``up``: then |act| stands for |act x up|,
        with a warning.

        Args:
            language: A recorded language.

        Raises:
            LanguageError: If it was not recorded.
            StatisticsError: For published counts, which do not tell.

        Example:
            >>> bool((stats.write("hi") > 0).all())
            True
        """
        responses = self._of(language)
        if self.site in ROUTER_SITES:
            return responses.probability(0.0)
        magnitude = responses.mean_written()
        if magnitude is None:
            warn_user(
                "These statistics were recorded by version 0.1.0, which left out what gated neurons multiply their "
                "activation by (up): how much neurons write is read as |act| x norm. Record them again."
            )
            magnitude = responses.mean_magnitude()
        return magnitude * self.output_norm().double()

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
        whole = self._of(language).histogram(layer)
        histogram = Histogram(*(getattr(whole, field.name)[index : index + 1] for field in fields(whole)))
        edges = histogram.edges()[0]
        scale = self._of(language).record.tensors.get("scale")
        return (edges if scale is None else torch.sinh(edges) * scale[layer, index].double()), histogram.counts[0]

    def cdfs(self, layer: int) -> list[ValueCdf]:
        """The cumulative distributions of one layer's neurons, one for each language.

        Raises:
            StatisticsError: If no histograms were recorded.
        """
        return [self._of(language).cdf(layer) for language in self.languages]

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
        if not isinstance(neuron, Sequence) or len(neuron) != 2:
            raise StatisticsError(f"A neuron is given as (layer, index), not as {neuron!r:.60}.")
        layer, index = (whole_number(part, "neuron", StatisticsError) for part in neuron)
        layers, neurons = self.shape
        if not (0 <= layer < layers and 0 <= index < neurons):
            last = (layers - 1, neurons - 1)
            raise StatisticsError(f"There is no neuron {(layer, index)}: possible are (0, 0) to {last}.")
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
        return self._of(language).record.tokens

    def fold_probability(self, language: str) -> Float[Tensor, "fold layer neuron"]:
        """P(activation > 0) in each document fold; NaN in a fold without tokens."""
        return self._of(language).per_fold("active")

    def fold_mean(self, language: str) -> Float[Tensor, "fold layer neuron"]:
        """Mean activation in each document fold; NaN in a fold without tokens."""
        return self._of(language).per_fold("sum", self._of(language).units() * 2.0**-SUM_UNITS)

    @property
    def also(self) -> tuple[str, ...]:
        """The optional statistics that every language holds at the site, see ``record(also=...)``."""
        return held(set.intersection(*(set(record.tensors) for record in self.records[self.site].values())))

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
        sums, tokens = self._of(language).tensor("sentence_sum"), self._of(language).tensor("sentence_tokens")
        unit = self._of(language).units()[layer] * 2.0**-SUM_UNITS
        return sums[:, layer].double() * unit / tokens[:, None]

    def relevance(self) -> Float[Tensor, "language layer neuron"]:
        """Mean over counted tokens of abs(activation x slope of the loss in it), in nats.

        Raises:
            StatisticsError: If it was not recorded with ``also=("gradient",)``.
        """
        folds = [(self.fold_relevance(language), self.fold_tokens(language)) for language in self.languages]
        return torch.stack([weighted_mean(*of_language) for of_language in folds])

    def fold_relevance(self, language: str) -> Float[Tensor, "fold layer neuron"]:
        """The relevance in each document fold; NaN in a fold without tokens."""
        unit = self._of(language).tensor("relevance_unit").double() * 2.0**-SUM_UNITS
        return self._of(language).per_fold("relevance_sum", unit)

    def folds(self, n: int) -> "list[ActivationStats]":
        """Split by document into ``n`` parts: counts above zero and sums, without histograms.

        Args:
            n: Number of parts, a divisor of 20.

        Raises:
            StatisticsError: If ``n`` does not divide the recorded folds.
        """
        recorded = len(self.fold_tokens(self.languages[0]))
        n = whole_number(n, "n", StatisticsError)
        if n < 1 or recorded % n:
            raise StatisticsError(f"{recorded} document folds were recorded: they cannot be grouped into {n} parts.")
        return [self._fold(range(part, recorded, n)) for part in range(n)]

    def _fold(self, members: range) -> "ActivationStats":
        records = self.records.items()
        return replace(
            self, records={s: {name: record.fold(members) for name, record in of.items()} for s, of in records}
        )

    def comparable(self) -> dict[str, Any]:
        """What must agree so that statistics can be added."""
        return {
            "model": self.model.fingerprint[:8],
            "dtype": self.model.dtype,
            "sites": self.sites,
            "features": self.of_features,
            "context length": self.context_length,
        }

    def __add__(self, other: "ActivationStats") -> "ActivationStats":
        """Merge: languages of both; a language in both is added, exactly.

        Raises:
            StaleArtefactError: If model, site or context length differ.
            StatisticsError: If edges differ or a block would be counted twice.
        """
        pairs = zip(self.comparable().items(), other.comparable().values(), strict=True)
        mismatches = [f"{what}: {mine} and {theirs}" for (what, mine), theirs in pairs if mine != theirs]
        if mismatches:
            raise StaleArtefactError(f"These statistics cannot be added; they differ in {'; '.join(mismatches)}.")
        merged = {site: dict(records) for site, records in self.records.items()}
        for site, records in other.records.items():
            for language, record in records.items():
                merged[site][language] = merged[site][language] + record if language in merged[site] else record
        return replace(self, records=merged)

    @classmethod
    def from_counts(
        cls,
        active: Num[Tensor, "language layer neuron"],
        tokens: Num[Tensor, " language"],
        languages: Sequence[str],
        site: str = "act",
        *,
        clip: bool = False,
    ) -> "ActivationStats":
        """Statistics from published counts.

        Args:
            active: Number of tokens on which each neuron was above zero.
            tokens: Counted tokens of each language.
            languages: Their codes.
            site: The site of the counts.
            clip: Whether a count above its language's tokens, as a few in published data are, becomes that number.

        Raises:
            StatisticsError: If shapes do not fit, a number is not whole or not possible, or a count exceeds its tokens
                without ``clip``.

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
        active, tokens = checked_counts(active, tokens, languages, clip)
        records = {
            language: LanguageRecord(tokens[i : i + 1], {"active": active[i : i + 1]})
            for i, language in enumerate(languages)
        }
        return cls(RecordedModel(PUBLISHED, PUBLISHED, "unknown", gated=True), 0, {site: records})

    @classmethod
    def read_counts(cls, sources: Mapping[str, Any], site: str = "act", *, clip: bool = False) -> "ActivationStats":
        """Statistics from files of counts, such as Tang et al. 2024's activation.py writes, one for each language.

        Args:
            sources: Language -> torch file, or what it holds: a dictionary with ``over_zero`` (layer x neuron) and
                ``n`` or ``total_tokens``. Nothing in a file is executed.
            site: The site of the counts.
            clip: Whether a count above its language's tokens becomes that number.

        Raises:
            StorageError: If a file cannot be read, or holds what would have to be executed.
            StatisticsError: If it holds something else, languages have different shapes, or ``from_counts`` refuses it.

        Example:
            >>> counts = {"hi": {"n": 4, "over_zero": torch.tensor([[3, 0]])}}
            >>> ActivationStats.read_counts(counts).probability().tolist()
            [[[0.75, 0.0]]]
        """
        counts = {language: read_counts(source, language) for language, source in sources.items()}
        shapes = {language: tuple(active.shape) for language, (active, _) in counts.items()}
        if len(set(shapes.values())) != 1:
            listed = ", ".join(f"{language} {layers} x {width}" for language, (layers, width) in shapes.items())
            raise StatisticsError(f"Counts of one model have one shape, not {listed or 'none at all'}.")
        active, tokens = (torch.stack(tensors) for tensors in zip(*counts.values(), strict=True))
        return cls.from_counts(active, tokens, list(counts), site, clip=clip)

    def manifest(self) -> dict[str, Any]:
        """What the JSON file says: model, settings, languages, tokens a fold and what they were counted on."""
        return {
            "model": self.model.about() | ({"of_features": self.of_features} if self.of_features else {}),
            "context_length": self.context_length,
            "sites": list(self.sites),
            "order": list(self.languages),
            "languages": {language: record.about() for language, record in self.records[self.site].items()},
        }

    def _about(self) -> dict[str, object]:
        records = self.records[self.site].values()
        corpora = sorted({source[:8] for record in records for source in record.sources})
        return {
            "model": self.model.name,
            "weights": self.model.fingerprint,
            "corpus": [f"packed texts {source}" for source in corpora],
            "tokens": dict(zip(self.languages, self.tokens.tolist(), strict=True)),
            "options": {"sites": self.sites, "context length": self.context_length, "dtype": self.model.dtype},
        }

    @property
    def _origin(self) -> JsonObject:
        return self._origin_of(self.manifest())

    def _write(self, folder: Path) -> JsonObject:
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
        return {**self.manifest(), "checksums": checksums}

    @classmethod
    def _read(cls, folder: Path, content: JsonObject) -> dict[str, Any]:
        """Open the files: a language's is verified and memory-mapped when it is first used."""
        about: Any = content
        check_manifest(about)
        checksums = about["checksums"]
        tensors = storage.read_tensors(folder / "model.safetensors", checksums["model.safetensors"])
        records = {
            site: {
                language: stored_record(
                    folder / (name := f"{language}.{site}.safetensors"), checksums[name], about["languages"][language]
                )
                for language in about["order"]
            }
            for site in about["sites"]
        }
        model = RecordedModel.of(about["model"], tensors)
        return {"model": model, "context_length": about["context_length"], "records": records}

    def _of(self, language: str) -> RecordedResponses:
        records = self.records[self.site]
        return RecordedResponses(records[label_of(language, records)], self.site, self.model)


def check_statistics(stats: object) -> None:
    """Refuse what is no statistics.

    Raises:
        StatisticsError: If it is something else.
    """
    check_kind(stats, ActivationStats, "Statistics are an ActivationStats, such as ln.record() gives", StatisticsError)
