"""What a report is made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pandas as pd

from langneurons.analysis.ablation import Ablation
from langneurons.analysis.profiles import Profiles
from langneurons.analysis.selectivity.result import Polysemanticity
from langneurons.effects.table import EffectTable
from langneurons.errors import StaleArtefactError, StatisticsError
from langneurons.evaluation.evaluation import Evaluation, Factorial
from langneurons.identification.neurons import NeuronSet
from langneurons.recording.statistics import PUBLISHED, ActivationStats
from langneurons.training.transfer_table import Transfer
from langneurons.views.analysis_figures import Checked
from langneurons.views.pages import check_belongs


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found, as far as it was; the report shows what there is.

    Attributes:
        question: What the study asks, the report's title.
        answer: Sentences to say before those that follow from the results.
        stats: Activation statistics.
        neurons: Method -> its neuron set.
        matrix: From ``ln.perplexity_matrix``; of this and the following either one result, or several by name.
        sweep: From ``ln.sweep``.
        evaluation: From ``ln.evaluate``.
        factorial: From ``ln.factorial``.
        transfer: From ``ln.transfer_experiment``.
        ablation: From ``ln.ablate``.
        polysemanticity: From ``ln.polysemanticity``.
        validity: A validity table.
        published: Heading -> table that holds published numbers against these.
        published_about: Sentences that say which numbers those are.
        profiles: From ``ln.profile``: each of its neurons gets a page.
        provenance: Sentences to say after those that follow from the results.
        config: What to run to get the same again: a study's TOML, or commands.
    """

    question: str
    answer: Sequence[str] = ()
    stats: ActivationStats | None = None
    neurons: Mapping[str, NeuronSet] = field(default_factory=dict)
    matrix: EffectTable | Mapping[str, EffectTable] | None = None
    sweep: EffectTable | Mapping[str, EffectTable] | None = None
    evaluation: Evaluation | Mapping[str, Evaluation] | None = None
    factorial: Factorial | Mapping[str, Factorial] | None = None
    transfer: Transfer | Mapping[str, Transfer] | None = None
    ablation: Ablation | Mapping[str, Ablation] | None = None
    polysemanticity: Polysemanticity | Mapping[str, Polysemanticity] | None = None
    validity: Checked | None = None
    published: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    published_about: Sequence[str] = ()
    profiles: Profiles | None = None
    provenance: Sequence[str] = ()
    config: str = ""

    @property
    def found(self) -> list[str]:
        """The names of the results there are."""
        said = ("question", "answer", "published_about", "provenance", "config")
        return [one.name for one in fields(self) if one.name not in said and getattr(self, one.name)]

    def each(self, kind: str) -> dict[str, Any]:
        """The results of a kind by name; one that was given without a name has an empty one."""
        given = getattr(self, kind)
        if given is None:
            return {}
        return dict(given) if isinstance(given, Mapping) else {"": given}

    def first(self, kind: str) -> Any:
        """The first result of a kind, None where there is none."""
        return next(iter(self.each(kind).values()), None)

    def check(self) -> None:
        """Refuse to report on nothing, or on what does not belong together.

        Raises:
            StatisticsError: If there is no result.
            StaleArtefactError: If results belong to different models or sites.
        """
        if not self.found:
            raise StatisticsError(
                "There is nothing to report: give at least one result, such as stats=, neurons= or matrix=."
            )
        if self.profiles is not None:
            check_belongs(
                self.profiles, self.stats, self.first("polysemanticity"), self.first("ablation"), self.neurons
            )
        if self.stats is None:
            return
        for method, found in self.neurons.items():
            model = None if found.site not in self.stats.sites else self.stats.at(found.site).fingerprint
            if None not in (model, found.model) and model != PUBLISHED and model != found.model:
                raise StaleArtefactError(
                    f"The neurons of {method} belong to model {str(found.model)[:8]}, the statistics to "
                    f"{str(model)[:8]}: identify them from these statistics."
                )
