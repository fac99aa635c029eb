"""XNLI: does a premise entail a hypothesis, contradict it or neither, answered by label likelihood or by a head."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from scipy.sparse import csr_matrix, hstack
from scipy.special import log_softmax
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from langneurons import storage
from langneurons.corpora.languages import distinct, for_languages, label_of
from langneurons.errors import TaskError, unknown
from langneurons.models import ModelView
from langneurons.settings import Prompting, Training
from langneurons.tasks.continuations import table_of_texts
from langneurons.tasks.heads import Head, items_of, pairs_of
from langneurons.tasks.likelihood import (
    CALIBRATIONS,
    LABELS,
    Example,
    Templates,
    gold_texts,
    label_scores,
    order_of,
    read_templates,
)
from langneurons.tasks.objectives import Classifying
from langneurons.tasks.pairs import COLUMNS, read_pairs
from langneurons.tasks.reading import BABEL, SPLITS, check_shots, checked_draw, in_turn, part_of, sliced, table_of

SCORING = "xnli/1"  # raised with every change of scoring, so that rows on disk that were scored otherwise are not used


@dataclass(frozen=True, eq=False, repr=False)
class XNLI:
    """Premises, each with hypotheses that follow from it, contradict it, or neither, in parallel languages.

    By likelihood, a language's templates are filled in with the word for each label, and the likeliest is the answer;
    by head, a classifier reads a hidden state. No item is dropped for its length: a premise too long for the model
    loses its end, and the row says ``cut``. ``XNLI.load`` makes it.

    Args:
        items: Language -> table of item, cluster (the premise), premise, hypothesis and label, the same items in all.
        templates: Language -> templates.
        calibration: Estimate of the model's preference for a label's word, which is subtracted: "content-free", "batch"
            or None, see ``likelihood.label_scores``.
        head: Head that answers instead of the likelihood.
        seed: Seed for the order in which templates show the options.
        name: Name in tables.
        prompting: Whether templates are filled in as plain text or as a chat, and how many examples precede each item.
        examples: Language -> table of those examples, with the columns of ``items``.

    Raises:
        TaskError: If there is no item, calibration is unknown, a language lacks templates or examples, the head's
            labels differ, or tokens should be sampled.
    """

    items: Mapping[str, pd.DataFrame]
    templates: Templates
    calibration: str | None = "content-free"
    head: Head | None = None
    seed: int = 0
    name: str = "xnli"
    prompting: Prompting = Prompting()
    examples: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    metrics = ("accuracy",)
    generates = False
    reads_text: ClassVar[bool] = False
    shows_examples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.items:
            raise TaskError("XNLI has no language.")
        for language, table in self.items.items():
            for column in ("item", "cluster", *COLUMNS):
                if column not in table:
                    raise TaskError(f"The items of {language!r} lack a column. {unknown('column', column, table)}")
        if self.calibration not in CALIBRATIONS:
            raise TaskError(unknown("calibration", self.calibration, CALIBRATIONS))
        if self.head is not None and set(self.head.labels) != set(LABELS):
            raise TaskError(
                f"The labels of XNLI are {', '.join(LABELS)}; the head's are {', '.join(self.head.labels)}."
            )
        if self.prompting.temperature:
            raise TaskError(
                f"XNLI reads the likelihood of labels and samples nothing: temperature must be 0, given "
                f"{self.prompting.temperature:g}."
            )
        check_shots(self.prompting.shots, self.items, self.examples)
        lacking = [language for language in self.items if not self.templates.get(language)]
        if self.head is None and lacking:
            raise TaskError(
                f"No template in {lacking[0]!r}: give templates=, a TOML file, or a head. There are templates in "
                f"{', '.join(self.templates)}."
            )

    @classmethod
    def load(
        cls,
        source: str | Path | Mapping[str, pd.DataFrame],
        languages: Iterable[str] | None = None,
        split: str = "test",
        *,
        revision: str | None = None,
        templates: str | Path | None = None,
        calibration: str | None = "content-free",
        head: Head | None = None,
        seed: int = 0,
        prompting: Prompting = Prompting(),
    ) -> "XNLI":
        """Load items and check that they are parallel.

        Args:
            source: A folder of the official files of XNLI 1.0, ``xnli.test.tsv`` or ``xnli.test.jsonl``, of all
                languages; a folder of TSV (columns premise, hypothesis and label, no quoting), jsonl or parquet files
                with language and split in their names, such as ``test-hi.tsv``; one such file; a hub id,
                "facebook/xnli"; "babel", the miniature task that comes with langneurons; or language -> table. All
                files but parquet may be compressed. Labels are names, or 0, 1, 2 for entailment, neutral,
                contradiction; pairs with the gold label "-" are left out, in all languages, with a warning.
            languages: Languages to load, in this order; by default all of a folder.
            split: "test", "validation" or "train", or a part of one, such as "train[:25%]".
            revision: Branch, tag or commit of a hub data set.
            templates: A TOML file of templates; by default the built-in ones of 15 languages.
            calibration: Calibration of the likelihoods: "content-free", "batch" or None.
            head: Head that answers instead of the likelihood; ``with_head`` gives one later.
            seed: Seed for the order in which templates show the options.
            prompting: Whether templates are filled in as plain text or as a chat, and how many solved examples precede
                each item. They come from the validation split (from the training split if that one is scored), each
                with another premise, none of which is scored, and with labels as balanced as can be.

        Returns:
            The task. An item is a pairID of the official files, else a row's number; a cluster is a promptID, else a
            premise (of English where that is among the languages, else of the first: translations may give two premises
            one text).

        Raises:
            TaskError: If files, columns, labels or texts are missing or malformed, or languages are not parallel.
            LanguageError: If a language is not there.

        Example:
            >>> import pandas as pd
            >>> rows = [("It rains.", "It is wet.", "entailment"), ("It rains.", "It is dry.", "contradiction")]
            >>> task = ln.XNLI.load({"en": pd.DataFrame(rows, columns=["premise", "hypothesis", "label"])})
            >>> task
            XNLI(likelihood, content-free calibration; en; 2 items of 1 premises)
            >>> list(task.measure(model, "en").columns[:5])
            ['item', 'cluster', 'prediction', 'gold', 'accuracy']
        """
        split, part = sliced(split)
        pairs = read_pairs(source, languages, split, revision)
        items = {language: part_of(table, part) for language, table in pairs.items()}
        examples = {}
        if prompting.shots:
            if isinstance(source, Mapping):
                raise TaskError(
                    "Tables have no other split to take solved examples from: shots must be 0, or give the "
                    "source as a folder or a hub id."
                )
            other = "train" if SPLITS[split] == "validation" else "validation"
            examples = _examples(items, read_pairs(source, list(items), other, revision), prompting)
        name = "mini_xnli" if isinstance(source, str) and source == BABEL else "xnli"
        texts = for_languages(read_templates(templates), items)
        return cls(items, texts, calibration, head, seed, name, prompting, examples)

    def __repr__(self) -> str:
        by = f"likelihood, {self.calibration or 'no'} calibration" if self.head is None else f"head {self.head!r}"
        table = next(iter(self.items.values()))
        counts = f"{len(table)} items of {table['cluster'].nunique()} premises"
        return f"XNLI({by}; {', '.join(self.languages)}; {counts})"

    @property
    def protocol(self) -> str:
        """How the answer is read off the model: "likelihood" or "head"."""
        return "likelihood" if self.head is None else "head"

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages it has items in."""
        return tuple(self.items)

    @property
    def fingerprint(self) -> str:
        """A hash of the items and of everything that decides how they are scored, but not of the model."""
        parts = [SCORING, self.protocol]
        for language, table in self.items.items():
            parts += [language, *_values(table)]
        if self.head is not None:
            return storage.fingerprint(*parts, self.head.fingerprint)
        templates = [
            repr([(template.text, sorted(template.words.items())) for template in self.templates[language]])
            for language in self.items
        ]
        shown = [self.examples[language] for language in self.items] if self.prompting.shots else []
        asking = [*map(str, self.prompting.changes.items()), *(value for table in shown for value in _values(table))]
        return storage.fingerprint(*parts, *templates, str(self.calibration), str(self.seed), *asking)

    def objective(
        self,
        model_view: ModelView,
        languages: Iterable[str] | None = None,
        training: Training = Training(),
        head: Head | None = None,
    ) -> Classifying:
        """The cross-entropy of a head on the items of some languages, see ``Task.objective``."""
        return Classifying(model_view, items_of(self, languages), training, head, LABELS)

    def with_head(self, head: Head) -> "XNLI":
        """The same items, answered by a head.

        Raises:
            TaskError: If the head has other labels.
        """
        return replace(self, head=head)

    by_head = with_head  # its name in version 0.1.0

    def take(self, count: int, seed: int = 0) -> "XNLI":
        """Draw some premises at random, with all their hypotheses, the same in every language.

        Args:
            count: Number of premises; all where there are fewer.
            seed: Seed of the draw.

        Raises:
            TaskError: If ``count`` is below 1.
        """
        count, seed = checked_draw(count, seed, "premises")
        clusters = np.unique(next(iter(self.items.values()))["cluster"])
        premises = np.random.default_rng(seed).permutation(clusters)[:count]
        parts = {language: table[table["cluster"].isin(premises.tolist())] for language, table in self.items.items()}
        return replace(self, items={language: table.reset_index(drop=True) for language, table in parts.items()})

    def select(self, languages: Iterable[str]) -> "XNLI":
        """The same items in some of the languages.

        Raises:
            LanguageError: If it has no items in a language.
        """
        return replace(self, items={language: self.items[language] for language in distinct(languages, self.items)})

    def measure(self, model: torch.nn.Module, language: str, batch_size: int = 8) -> pd.DataFrame:
        """Score a model on the items of one language, with whatever is attached to it at this moment.

        Args:
            model: A model returned by ``load_model``.
            language: Language of the items.
            batch_size: Texts per forward pass.

        Returns:
            One row per item: item, cluster, prediction, gold, accuracy (0 or 1), the log-probability of each label as
            ``score_<label>``, and cut (whether the end of the premise was left out to fit the model).

        Raises:
            LanguageError: If it has no items in the language.
            ModelError: If the model has no tokenizer.
            TaskError: If an item does not fit the model even without its premise, or the head does not fit.
        """
        language = label_of(language, self.items)
        table = self.items[language]
        pairs = pairs_of(table)
        if self.head is None:
            orders = [order_of(self.seed, item) for item in table["item"]]
            options = {"prompting": self.prompting, "examples": self._examples(language)}
            templates = self.templates[language]
            scores, cut = label_scores(model, pairs, orders, templates, self.calibration, batch_size, **options)
        else:
            logits = self.head.logits(model, pairs, batch_size).double().cpu().numpy()
            columns = [self.head.labels.index(label) for label in LABELS]
            scores, cut = log_softmax(logits[:, columns], axis=1), self.head.cut(model, pairs)
        prediction = np.array(LABELS)[scores.argmax(1)]
        return pd.DataFrame(
            {
                "item": table["item"],
                "cluster": table["cluster"],
                "prediction": prediction,
                "gold": table["label"],
                "accuracy": (prediction == table["label"]).astype(float),
                **{f"score_{label}": scores[:, place] for place, label in enumerate(LABELS)},
                "cut": cut,
            }
        )

    def gold_texts(self, model_view: ModelView, language: str) -> pd.DataFrame:
        """The right answers as texts of which the model predicts the last tokens, one per item and template.

        Args:
            model_view: View of the model that is asked.
            language: Language of the items.

        Returns:
            Columns item, cluster, tokens (ids of the whole text) and given (how many of them precede the answer).

        Raises:
            LanguageError: If it has no items in the language.
            TaskError: If a head answers, or an item does not fit the model even without its premise.
        """
        if self.head is not None:
            raise TaskError("A head answers this task, so no answer is a text: load it without head=.")
        language = label_of(language, self.items)
        table = self.items[language]
        orders = [order_of(self.seed, item) for item in table["item"]]
        about = (pairs_of(table), orders, list(table["label"]))
        parts = []
        for template in self.templates[language]:
            texts = gold_texts(model_view, *about, template, self.prompting, self._examples(language))
            parts.append(table_of_texts(table, texts))
        return pd.concat(parts, ignore_index=True)

    def references(self, language: str) -> dict[str, float]:
        """What accuracy is worth without the model: chance, majority, hypothesis only, bag of words.

        Raises:
            LanguageError: If it has no items in the language.
        """
        return label_references(table_of(self.items, language), LABELS)

    def _examples(self, language: str) -> list[Example]:
        if not self.prompting.shots:
            return []
        table = self.examples[language]
        orders = [order_of(self.seed, item) for item in table["item"]]
        return list(zip(pairs_of(table), orders, table["label"], strict=True))


def _examples(
    items: Mapping[str, pd.DataFrame], others: Mapping[str, pd.DataFrame], prompting: Prompting
) -> dict[str, pd.DataFrame]:
    """Draw the same items of another split in every language, with premises of their own and balanced labels."""
    apart = [~table["premise"].isin(list(items[language]["premise"])) for language, table in others.items()]
    free = next(iter(others.values()))[np.logical_and.reduce(apart)]
    shuffled = free.iloc[np.random.default_rng(prompting.seed).permutation(len(free))].drop_duplicates("cluster")
    if len(shuffled) < prompting.shots:
        raise TaskError(
            f"There are {len(shuffled)} premises to show that are not scored: shots must be at most that, given "
            f"{prompting.shots}."
        )
    rows = in_turn(shuffled, "label", prompting.shots)
    return {language: table.loc[rows].reset_index(drop=True) for language, table in others.items()}


def _values(table: pd.DataFrame) -> list[str]:
    return [str(value) for column in table for value in (column, *table[column])]


FOLDS = 5
_FEATURES = 2**14


def label_references(items: pd.DataFrame, labels: Sequence[str]) -> dict[str, float]:
    """Measure accuracies without a model on items of two texts and a label.

    Args:
        items: Table with the columns cluster, premise, hypothesis and label.
        labels: All labels there are.

    Returns:
        Accuracy of: chance; "majority", the most frequent label for every item; "hypothesis only", a classifier that
        never sees the premise (Gururangan et al. 2018; Poliak et al. 2018); "bag of words", one that sees both without
        order. The classifiers are cross-validated over clusters, and left out where these are fewer than five.

    Example:
        >>> import pandas as pd
        >>> from langneurons.tasks.xnli import label_references
        >>> said = {"yes": "entailment", "no": "contradiction"}
        >>> rows = [(i, "It rains.", f"{word}, {i}", label) for i in range(10) for word, label in said.items()]
        >>> label_references(pd.DataFrame(rows, columns=["cluster", "premise", "hypothesis", "label"]), ["a", "b", "c"])
        {'chance': 0.333..., 'majority': 0.5, 'hypothesis only': 1.0, 'bag of words': 1.0}
    """
    columns = (tuple(items[name]) for name in ("cluster", "premise", "hypothesis", "label"))
    return dict(_references(*columns, len(labels)))


@lru_cache(maxsize=32)  # the same items are asked in several protocols
def _references(
    clusters: tuple, premises: tuple[str, ...], hypotheses: tuple[str, ...], labels: tuple[str, ...], possible: int
) -> dict[str, float]:
    gold, cluster = np.array(labels), pd.factorize(np.array(clusters))[0]
    references = {"chance": 1 / possible, "majority": max(Counter(labels).values()) / len(labels)}
    if len(np.unique(cluster)) < FOLDS:
        return references
    hypothesis = _counts(hypotheses)
    both = csr_matrix(hstack([_counts(premises), hypothesis]))
    return {
        **references,
        "hypothesis only": cross_validated_accuracy(hypothesis, gold, cluster),
        "bag of words": cross_validated_accuracy(both, gold, cluster),
    }


def cross_validated_accuracy(features: csr_matrix, gold: np.ndarray, cluster: Int[np.ndarray, " item"]) -> float:
    """Fit a logistic regression on four fifths of the clusters and predict the rest, in turn.

    Args:
        features: One row per item.
        gold: The label of each item.
        cluster: The cluster of each item; no cluster is both fitted and predicted.

    Returns:
        The share of items predicted right.
    """
    right = 0
    for train, test in GroupKFold(FOLDS).split(features, gold, cluster):
        if len(set(gold[train])) == 1:
            predicted = np.full(len(test), gold[train][0])
        else:
            # Features that no training item has would get no weight; without them a fit takes a fraction of the time.
            used = np.unique(features[train].indices)
            classifier = LogisticRegression(max_iter=200).fit(features[train][:, used], gold[train])
            predicted = classifier.predict(features[test][:, used])
        right += int((predicted == gold[test]).sum())
    return right / len(gold)


def _counts(texts: Sequence[str]) -> csr_matrix:
    """Character n-grams stand for words, so that no language needs a segmenter."""
    vectorizer = HashingVectorizer(analyzer="char", ngram_range=(1, 3), n_features=_FEATURES, alternate_sign=False)
    return csr_matrix(vectorizer.transform(texts))
