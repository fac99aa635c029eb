"""Texts with labels, the same items in every language: what activations are compared over."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from langneurons import storage
from langneurons.corpora.languages import distinct
from langneurons.errors import TaskError, unknown
from langneurons.settings import whole_number

COLUMNS = ["item", "cluster", "text", "label"]
THIRDS = ("beginning", "middle", "end")
Text = str | tuple[str, str]


@dataclass(frozen=True, eq=False, repr=False)
class LabelledTexts:
    """Texts in several languages, each with a label that is not its language.

    Args:
        items: Language -> one row per text: item (its translations have the same), cluster (items that are not
            independent of each other, such as those about one premise), text (or a pair of texts, read one after the
            other with a separator between them), and label. An item's label and cluster are the same in every language;
            it need not be in all of them.
        name: Name of what is labelled.

    Raises:
        TaskError: If a column, text, label or cluster is missing, an item occurs twice in a language or has another
            label or cluster in another, or a label does not occur in two clusters.

    Example:
        >>> rows = [(0, 0, "It rains.", "wet"), (1, 1, "Dry.", "dry"), (2, 2, "Rain.", "wet"), (3, 3, "Sun.", "dry")]
        >>> LabelledTexts({"en": pd.DataFrame(rows, columns=["item", "cluster", "text", "label"])})
        LabelledTexts(texts: dry, wet; en; 4 items in 4 clusters)
    """

    items: Mapping[str, pd.DataFrame]
    name: str = "texts"

    def __post_init__(self) -> None:
        if not self.items:
            raise TaskError("There is no text: give those of at least one language.")
        for language, table in self.items.items():
            _check_table(language, table)
        _check_agreement(self._rows)
        _check_labels(self.known)

    @classmethod
    def of(cls, task: object) -> "LabelledTexts":
        """Read texts and labels off a task.

        Of ``XNLI`` the text is the pair of premise and hypothesis, and the cluster the premise. Of ``XQuAD`` it is the
        pair of paragraph and question, the cluster the paragraph, and the label the third of the paragraph that holds
        the middle of the first answer (where that stands first): beginning, middle or end, as it is in the first
        language, for all of them.

        Args:
            task: ``XNLI``, ``XQuAD``, anything with ``items`` in the columns of one of them, language -> table of
                item, cluster, text and label, or labelled texts, which are returned as they are.

        Raises:
            TaskError: If it is none of these, or malformed.

        Example:
            >>> rows = [(f"It rains {place}.", "It is wet.", place % 2) for place in range(4)]
            >>> task = ln.XNLI.load({"en": pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])})
            >>> LabelledTexts.of(task)
            LabelledTexts(xnli: entailment, neutral; en; 4 items in 4 clusters)
        """
        if isinstance(task, cls):
            return task
        tables = task if isinstance(task, Mapping) else getattr(task, "items", None)
        if not isinstance(tables, Mapping) or not all(isinstance(table, pd.DataFrame) for table in tables.values()):
            raise TaskError(f"Texts with labels are read off XNLI, XQuAD or LabelledTexts, not off {task!r:.60}.")
        first = next(iter(tables.values()), pd.DataFrame())
        if {"premise", "hypothesis"} <= set(first.columns):
            tables = {language: _with_pairs(table, "premise", "hypothesis") for language, table in tables.items()}
        elif {"context", "question", "answers"} <= set(first.columns):
            labelled = first.assign(label=_answer_thirds(first), cluster=pd.factorize(first["context"])[0])
            labelled = labelled.set_index("item")[["label", "cluster"]]
            tables = {
                language: _with_pairs(table.drop(columns="cluster").join(labelled, on="item"), "context", "question")
                for language, table in tables.items()
            }
        return cls(tables, getattr(task, "name", "texts"))

    @classmethod
    def parallel(
        cls,
        texts: Mapping[str, Sequence[Text]],
        labels: Sequence[Hashable],
        clusters: Sequence[Hashable] | None = None,
        name: str = "texts",
    ) -> "LabelledTexts":
        """Label translations of the same texts.

        Args:
            texts: Language -> texts, in the same order in every language.
            labels: One label per text.
            clusters: Texts that are not independent of each other have the same value, one per text; by default each is
                its own cluster.
            name: Name of what is labelled.

        Raises:
            TaskError: If there are not as many labels or clusters as texts, or they are malformed.

        Example:
            >>> LabelledTexts.parallel({"en": ["a", "b", "c", "d"], "fr": ["e", "f", "g", "h"]}, [0, 1, 0, 1]).labels
            ('0', '1')
        """
        grouped, tables = range(len(labels)) if clusters is None else clusters, {}
        for language, part in texts.items():
            for what, values in (("labels", labels), ("clusters", grouped)):
                if len(values) != len(part):
                    raise TaskError(
                        f"There are {len(values)} {what} for the {len(part)} texts of {language!r}: give one per text."
                    )
            columns = {"cluster": list(grouped), "text": list(part), "label": list(labels)}
            try:
                tables[language] = pd.DataFrame({"item": range(len(part)), **columns})
            except UnicodeEncodeError as error:
                message = f"The texts of {language!r} are not valid Unicode: one holds half a surrogate pair."
                raise TaskError(message) from error
        return cls(tables, name)

    def __repr__(self) -> str:
        counts = f"{len(self.known):,} items in {self.known['cluster'].nunique():,} clusters"
        return f"LabelledTexts({self.name}: {', '.join(self.labels)}; {', '.join(self.languages)}; {counts})"

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages it has texts in."""
        return tuple(self.items)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels, sorted."""
        return tuple(sorted(set(self.known["label"])))

    @cached_property
    def known(self) -> pd.DataFrame:
        """Every item's label (as text) and cluster, indexed by item, in the order in which items first occur."""
        first = self._rows.drop_duplicates("item").set_index("item")
        return pd.DataFrame({"label": first["label"].astype(str), "cluster": first["cluster"]})

    @property
    def fingerprint(self) -> str:
        """A hash of everything it holds."""
        columns = [repr(table[column].tolist()) for _, table in sorted(self.items.items()) for column in COLUMNS]
        return storage.fingerprint(*sorted(self.items), *columns)

    def select(self, languages: Iterable[str] | None) -> "LabelledTexts":
        """The texts of some languages, in that order; of all where None is given.

        Raises:
            LanguageError: If a language is not there.
            TaskError: If a label does not occur in two clusters of what is left.
        """
        languages = self.languages if languages is None else distinct(languages, self.items)
        return replace(self, items={language: self.items[language] for language in languages})

    def take(self, items: int, seed: int = 0) -> "LabelledTexts":
        """Draw whole clusters at random, the same in every language, until there are as many items as wanted.

        Args:
            items: Least number of items; all where there are fewer.
            seed: Seed of the draw.

        Raises:
            TaskError: If ``items`` is below 1, or a label does not occur in two of the clusters drawn.
        """
        items, seed = whole_number(items, "items", TaskError), whole_number(seed, "seed", TaskError, least=0)
        if items < 1:
            raise TaskError(f"Cannot take {items} items: the least is 1.")
        sizes = self.known["cluster"].value_counts(sort=False)
        order = np.random.default_rng(seed).permutation(len(sizes))
        needed = int(np.searchsorted(sizes.to_numpy()[order].cumsum(), items)) + 1
        clusters = sizes.index[order[:needed]].tolist()
        tables = {language: table[table["cluster"].isin(clusters)] for language, table in self.items.items()}
        return replace(self, items={language: table.reset_index(drop=True) for language, table in tables.items()})

    @property
    def _rows(self) -> pd.DataFrame:
        return pd.concat([table.reindex(columns=COLUMNS) for table in self.items.values()], ignore_index=True)


def _with_pairs(table: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    return table.assign(text=list(zip(table[first], table[second], strict=True)))


def _answer_thirds(table: pd.DataFrame) -> list[str]:
    """In which third of its paragraph the middle of each first answer stands."""
    rows = zip(table["context"], table["answers"], strict=True)
    middles = [(context.find(answers[0]) + len(answers[0]) / 2) / len(context) for context, answers in rows]
    return [THIRDS[min(2, max(0, int(3 * middle)))] for middle in middles]


def _check_table(language: str, table: pd.DataFrame) -> None:
    for column in COLUMNS:
        if column not in table.columns:
            raise TaskError(f"The texts of {language!r} lack a column. {unknown('column', column, table.columns)}")
    if table.empty:
        raise TaskError(f"{language!r} has no text.")
    for column in ("item", "cluster", "label"):
        if missing := int(table[column].isna().to_numpy().sum()):
            raise TaskError(f"{missing} of the {len(table)} texts of {language!r} have no {column}.")
    for column in ("item", "label", "cluster"):
        if odd := [value for value in table[column] if not isinstance(value, Hashable)]:
            raise TaskError(f"In {language!r} the column {column!r} holds {odd[0]!r:.60}, not a name or a number.")
    for item in table["item"][table["item"].duplicated()]:
        raise TaskError(f"The item {item!r} stands twice among the texts of {language!r}; items must be distinct.")
    for item, text in zip(table["item"], table["text"], strict=True):
        parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
        if not all(isinstance(part, str) and part.strip() for part in parts):
            raise TaskError(f"The item {item!r} in {language!r} is blank, or no text or pair of texts: {text!r:.60}.")


def _check_agreement(rows: pd.DataFrame) -> None:
    """An item's label and cluster are permuted with all its translations, so they must be one."""
    for column in ("label", "cluster"):
        distinct_rows = rows.drop_duplicates(["item", column])
        for item in distinct_rows["item"][distinct_rows["item"].duplicated()]:
            first, second, *_ = distinct_rows[column][distinct_rows["item"] == item]
            raise TaskError(f"The item {item!r} has several values of {column!r}: {first!r} and {second!r}.")


def _check_labels(known: pd.DataFrame) -> None:
    counts = known["label"].value_counts()
    clusters = known.drop_duplicates(["label", "cluster"])["label"].value_counts().to_dict()
    for label, items in counts.to_dict().items():
        if clusters[label] < 2:
            raise TaskError(
                f"The label {label!r} has {items} item{'s' * (items > 1)} in one cluster: a label needs items in at "
                "least two, or what it does cannot be told from what that cluster does."
            )
    if len(clusters) < 2:
        raise TaskError(f"Every item has the label {next(iter(clusters))!r}: at least two labels are needed.")
