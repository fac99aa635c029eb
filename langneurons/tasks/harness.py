"""Tasks of EleutherAI's lm-evaluation-harness (extra ``harness``): its prompts, filters and scores, item by item."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch

from langneurons import storage
from langneurons.corpora.languages import distinct, label_of
from langneurons.errors import TaskError, in_short, unknown
from langneurons.models import ModelView, view
from langneurons.settings import Prompting, whole_number
from langneurons.tasks.continuations import table_of_texts
from langneurons.tasks.harness_documents import YAML, choices_of, in_parallel, items_of, language_of_task, local_files
from langneurons.tasks.heads import Head
from langneurons.tasks.prompting import is_chat
from langneurons.tasks.task import Task

SCORING = "harness/1"  # raised with every change of scoring, so that rows scored otherwise are not used again
SEED = 1234  # of the choice of examples: the harness' own default
# What the harness computes of all log-likelihoods and lengths together is here the item's own: the geometric mean of a
# word's, a byte's or the text's probability, since a score is from 0 to 1 and higher is better.
PROBABILITIES = {
    "word_perplexity": "p_per_word",
    "byte_perplexity": "p_per_byte",
    "bits_per_byte": "p_per_byte",
    "perplexity": "p",
}


@dataclass(frozen=True, eq=False, repr=False)
class Harness:
    """Tasks of the harness in one or several languages, scored as the harness scores them. ``harness`` makes it.

    Args:
        tasks: Language -> the harness' tasks in it, by name.
        items: Language -> task, doc (ordinal), item and cluster, and the choices' number where there are choices.
        metrics: Scores of single items that all of the tasks have, the first one's main one first.
        fingerprint: A hash of all requests and of how they are scored.
        name: Name in tables.
        chat: Whether prompts go through the tokenizer's chat template, see ``ln.settings.Prompting``.
        system: System prompt, with ``chat``.
    """

    tasks: Mapping[str, Mapping[str, Any]]
    items: Mapping[str, pd.DataFrame]
    metrics: tuple[str, ...]
    fingerprint: str
    name: str
    chat: bool | Literal["auto"] = False
    system: str | None = None

    reads_text: ClassVar[bool] = False
    shows_examples: ClassVar[bool] = True
    samples: ClassVar[bool] = False  # the tasks themselves say how answers are chosen
    objective = Task.objective  # the harness has no training
    files = staticmethod(local_files)  # that a study's source names

    @classmethod
    def load(
        cls,
        source: str | Sequence[str],
        languages: Iterable[str] | None = None,
        *,
        include_path: str | Path | None = None,
        fewshot: int | None = None,
        limit: int | None = None,
        prompting: Prompting = Prompting(),
    ) -> "Harness":
        """Load tasks as a study or a command line names them.

        Args:
            source: Names of tasks or groups, or YAML files of tasks; in one text they are divided by commas.
            languages: Languages to keep; by default all. A single one is also that of tasks whose names say none.
            include_path: A folder of further tasks, looked in first.
            fewshot: Examples in a prompt; by default ``prompting.shots``, or where that is 0 what each task says.
            limit: Documents to read of each task, the first ones; by default all.
            prompting: Whether prompts are messages of a chat; answers cannot be sampled.

        Raises:
            TaskError: If ``harness`` refuses something, or answers should be sampled.
            LanguageError: If no task is in a language.
        """
        if prompting.temperature:
            raise TaskError(
                f"The harness' tasks say how answers are chosen: temperature={prompting.temperature} must be 0."
            )
        names = [name.strip() for name in source.split(",")] if isinstance(source, str) else list(source)
        codes = None if languages is None else distinct(languages)
        usual = codes[0] if codes is not None and len(codes) == 1 else None
        fewshot = prompting.shots or None if fewshot is None else fewshot
        task = harness(names, include_path, limit, fewshot, usual, prompting.chat, prompting.system)
        return task if codes is None else task.select(codes)

    def __repr__(self) -> str:
        table = next(iter(self.items.values()))
        names = ", ".join(name for tasks in self.tasks.values() for name in tasks)
        counts = f"{len(table)} items, {table['cluster'].nunique()} clusters"
        return f"Harness({names:.100}; {', '.join(self.languages)}; {counts} in {self.languages[0]})"

    @property
    def protocol(self) -> str:
        """How the answer is read off the model: "likelihood", or "generation" where any task generates."""
        return "generation" if self.generates else "likelihood"

    @property
    def generates(self) -> bool:
        """Whether any task generates."""
        return any(task.OUTPUT_TYPE == "generate_until" for tasks in self.tasks.values() for task in tasks.values())

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages it has items in."""
        return tuple(self.items)

    def with_head(self, head: Head) -> "Harness":
        """The task itself: the harness answers by likelihood or generation."""
        return self

    def take(self, count: int, seed: int = 0) -> "Harness":
        """Draw some clusters of items at random, the same in every language that has them.

        Args:
            count: Number of clusters; all where there are fewer.
            seed: Seed of the draw.

        Raises:
            TaskError: If ``count`` is below 1.
        """
        count = whole_number(count, "count", TaskError, least=1)
        seed = whole_number(seed, "seed", TaskError, least=0)
        clusters = list(dict.fromkeys(cluster for table in self.items.values() for cluster in table["cluster"]))
        sampled = [clusters[place] for place in np.random.default_rng(seed).permutation(len(clusters))[:count]]
        return self._with(
            {language: table.loc[table["cluster"].isin(sampled)] for language, table in self.items.items()}
        )

    def select(self, languages: Iterable[str]) -> "Harness":
        """The same items in some of the languages.

        Raises:
            LanguageError: If no task is in a language.
        """
        return self._with({language: self.items[language] for language in distinct(languages, self.items)})

    def _with(self, items: Mapping[str, pd.DataFrame]) -> "Harness":
        parts = {language: table.reset_index(drop=True) for language, table in items.items() if len(table)}
        items_of_parts = [part for language, table in parts.items() for part in (language, *map(str, table["item"]))]
        tasks = {language: self.tasks[language] for language in parts}
        return replace(
            self, tasks=tasks, items=parts, fingerprint=storage.fingerprint(self.fingerprint, *items_of_parts)
        )

    def measure(self, model: torch.nn.Module, language: str, batch_size: int = 8) -> pd.DataFrame:
        """Score a model on the items of one language, with whatever is attached to it at this moment.

        Args:
            model: A model returned by ``load_model``.
            language: Language of the items.
            batch_size: Texts per forward pass.

        Returns:
            One row per item: item, cluster, prediction (the likeliest choice, or what filters leave of the text), gold,
            and the metrics.

        Raises:
            LanguageError: If no task is in the language.
            TaskError: If the model has no tokenizer, or none with a chat template where one is asked for.
        """
        from langneurons.tasks.harness_model import HarnessModel  # importing the harness takes seconds

        language, harness_model, parts = label_of(language, self.items), HarnessModel(model, batch_size), []
        chat = is_chat(view(model), self.chat)
        for name, table in self.items[language].groupby("task", sort=False):
            task = self.tasks[language][str(name)]
            samples = _samples(task, harness_model, table["doc"].tolist(), chat, self.system if chat else None)
            scores = pd.DataFrame([_answer(task, filtered) | _scores(task, filtered) for filtered in samples])
            parts.append(pd.concat([table[["item", "cluster"]].reset_index(drop=True), scores], axis=1))
        return pd.concat(parts, ignore_index=True).loc[:, ["item", "cluster", "prediction", "gold", *self.metrics]]

    def gold_texts(self, model_view: ModelView, language: str) -> pd.DataFrame:
        """The right choices as texts of which the model predicts the last tokens, one per item; see ``XNLI``.

        Raises:
            LanguageError: If no task is in the language.
            TaskError: If a task has no choices, or no single right one.
        """
        from langneurons.tasks.harness_model import ReadingModel  # importing the harness takes seconds

        language, reading, parts = label_of(language, self.items), ReadingModel(model_view.model), []
        chat = is_chat(model_view, self.chat)
        for name, table in self.items[language].groupby("task", sort=False):
            task = self.tasks[language][str(name)]
            samples = _samples(task, reading, table["doc"].tolist(), chat, self.system if chat else None)
            texts = [reading.texts[_gold_request(task, first)] for first, *_ in samples]
            parts.append(table_of_texts(table, texts))
        return pd.concat(parts, ignore_index=True)

    def references(self, language: str) -> dict[str, float]:
        """What accuracy is worth by chance; nothing for tasks without choices.

        Raises:
            LanguageError: If no task is in the language.
        """
        choices = self.items[label_of(language, self.items)]["choices"].to_numpy()
        return {"chance": float(np.mean(1 / choices))} if choices.all() else {}


def harness(
    names: str | Sequence[str],
    include_path: str | Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    languages: str | Mapping[str, str] | None = None,
    chat: bool | Literal["auto"] = False,
    system: str | None = None,
) -> Harness:
    r"""Load tasks of lm-evaluation-harness as one task, in the languages that their names say.

    Items are named by what the documents themselves call them (Belebele's passage and question, XCOPA's idx), or else
    by their place, so that they are equal across the languages of a parallel task. Clusters are passages or premises
    where several items share one, or else the items.

    Args:
        names: A task or a group, or several, or YAML files of tasks.
        include_path: A folder of further tasks, looked in first.
        limit: Documents to read of each task, the first ones; by default all.
        fewshot: Examples in a prompt; by default what each task says.
        languages: Task -> its language, or one language, for tasks whose names say none.
        chat: Whether prompts go through the tokenizer's chat template, examples as turns of the conversation; "auto"
            as in ``ln.settings.Prompting``.
        system: System prompt, with ``chat``.

    Returns:
        The task. Its metrics are those that are of single items and that all tasks have; with several filters a metric
        is called "metric,filter". Where the harness reports a perplexity, the metric is the inverse of the item's own.
        Metrics of which lower is better, or of the corpus as a whole, are left out.

    Raises:
        TaskError: If the package is missing, there is no such task, its data cannot be read, or no metric is of items.
        LanguageError: If nothing says which language a task is in.

    Example:
        >>> import json, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> docs = [{"question": f"{n} and one make", "sum": str(n + 1), "other": "many"} for n in range(4)]
        >>> _ = (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, docs)))
        >>> task = f'''
        ... task: sums_en
        ... dataset_path: json
        ... dataset_kwargs: {{data_files: {{test: {folder}/sums.jsonl}}}}
        ... test_split: test
        ... output_type: multiple_choice
        ... doc_to_text: "{{{{question}}}}"
        ... doc_to_choice: "{{{{[sum, other]}}}}"
        ... doc_to_target: 0
        ... '''
        >>> _ = (folder / "sums_en.yaml").write_text(task)
        >>> ln.tasks.harness("sums_en", include_path=folder)
        Harness(sums_en; en; 4 items, 4 clusters in en)
    """
    if limit is not None and whole_number(limit, "limit", TaskError) < 1:
        raise TaskError(f"limit is at least 1, given {limit}.")
    from langneurons.tasks.harness_model import BlankModel  # says it where the package is missing

    tasks, blank = _loaded([names] if isinstance(names, str) else list(names), include_path), BlankModel()
    places = {name: language_of_task(name, task, languages) for name, task in tasks.items()}
    several = len({language for language, _ in places.values()}) < len(tasks)
    by_language: dict[str, dict[str, Any]] = {language: {} for language, _ in places.values()}
    tables: dict[str, list[pd.DataFrame]] = {language: [] for language in by_language}
    parts: list[str] = [str(limit), str(chat), str(system)]
    metrics: list[list[str]] = []
    for name, task in tasks.items():
        _set_examples(task, fewshot)
        language, rest = places[name]
        samples = _samples(task, blank, range(limit) if limit else None)
        if not (of_items := list(_scores(task, samples[0]))):
            raise TaskError(
                f"No metric of {name!r} is of single items: {', '.join(task.aggregation())} cannot be used."
            )
        metrics.append(of_items)
        parts += [
            name,
            language,
            _described(task.dump_config()),
            *(_described(sample) for each in samples for sample in each),
        ]
        tables[language].append(items_of(task, name, rest if several else "", samples))
        by_language[language][name] = task
    common = tuple(metric for metric in metrics[0] if all(metric in others for others in metrics))
    if not common:
        raise TaskError(f"{', '.join(tasks):.100} have no metric in common: {'; '.join(map(', '.join, metrics)):.100}.")
    items = in_parallel({language: pd.concat(each, ignore_index=True) for language, each in tables.items()})
    title = ", ".join(Path(name).stem for name in ([names] if isinstance(names, str) else names))
    return Harness(by_language, items, common, storage.fingerprint(SCORING, *parts), title, chat, system)


@cache
def _manager(include_path: str | None, defaults: bool) -> Any:
    """The index of all tasks; reading the harness' own takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path, include_defaults=defaults)


def _loaded(names: Sequence[str], include_path: str | Path | None) -> dict[str, Any]:
    """The harness' tasks by name, groups taken apart."""
    folder = None if include_path is None else str(Path(include_path).expanduser())
    if folder is not None and not Path(folder).is_dir():
        raise TaskError(f"There is no folder {folder!r}: include_path is a folder of YAML files of tasks.")
    names = [str(Path(name).expanduser()) if name.endswith(YAML) else name for name in names]
    manager = _manager(folder, False) if folder is not None else _manager(None, True)
    if folder is not None and not all(_known(manager, name) for name in names):
        manager = _manager(folder, True)
    for name in names:
        if not _known(manager, name):
            raise TaskError(unknown("task of the harness", name, manager.all_tasks))
    try:
        with redirect_stderr(StringIO()):
            return dict(manager.load(names)["tasks"])
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        # Their loader raises whatever data sets, templates and functions of tasks raise.
        raise TaskError(
            f"{', '.join(names):.100} cannot be loaded ({in_short(error)}): most tasks read their documents from the "
            "Hugging Face hub, which has to be reachable once."
        ) from error


def _known(manager: Any, name: str) -> bool:
    return name in manager.task_index or Path(name).is_file()


def _set_examples(task: Any, fewshot: int | None) -> None:
    """Set the number of examples as the harness does: a task that says 0 keeps 0."""
    usual = task.get_config("num_fewshot")
    task.set_config("num_fewshot", (usual or 0) if fewshot is None or usual == 0 else fewshot)


def _samples(
    task: Any, harness_model: Any, docs: Iterable[int] | None, chat: bool = False, system: str | None = None
) -> list[list[dict[str, Any]]]:
    """Let the harness evaluate some documents of a task.

    Returns:
        Of each document, what the harness logs of it under each filter.
    """
    from lm_eval.evaluator import evaluate

    task.set_fewshot_seed(SEED)  # examples are sampled anew in every call, and shall be the same
    name, count = task.task_name, len(task.eval_docs)
    doc_ids = None if docs is None else [doc for doc in docs if doc < count]
    with redirect_stderr(StringIO()):  # their progress bars
        results: Any = evaluate(
            harness_model,
            {"tasks": {name: task}},
            samples=None if doc_ids is None else {name: doc_ids},
            bootstrap_iters=0,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            system_instruction=system,
        )
    by_doc: dict[int, list[dict[str, Any]]] = {}
    for sample in results["samples"][name]:
        by_doc.setdefault(sample["doc_id"], []).append(sample)
    return list(by_doc.values())


def _scores(task: Any, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The scores of one document under all filters, those that are its own and of which higher is better."""
    scores = {}
    for sample in samples:
        for metric in sample["metrics"]:
            value, name = sample[metric], PROBABILITIES.get(metric, metric)
            if metric in PROBABILITIES:
                log_p, length = value if isinstance(value, tuple) else (value, 1)
                value = math.exp(log_p / max(length, 1))
            elif not task.higher_is_better().get(metric, True) or not isinstance(value, int | float | np.number):
                continue
            scores[name if len(samples) == 1 else f"{name},{sample['filter']}"] = float(value)
    return scores


def _answer(task: Any, samples: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a model answered to one document, and what is right."""
    first, target = samples[0], samples[0]["target"]
    responses, texts = first["filtered_resps"], [str(arguments[-1]).strip() for arguments in first["arguments"]]
    if task.OUTPUT_TYPE != "multiple_choice":
        prediction = responses[0] if task.OUTPUT_TYPE == "generate_until" else ""
        return {"prediction": str(prediction), "gold": str(target)}
    choices = range(choices_of(task, first))
    prediction = texts[max(choices, key=lambda place: responses[place][0])]
    gold = texts[target] if isinstance(target, int) and target in choices else str(target)
    return {"prediction": prediction, "gold": gold}


def _gold_request(task: Any, sample: Mapping[str, Any]) -> tuple[str, str]:
    """The texts of the request for the right choice."""
    target = sample["target"]
    if task.OUTPUT_TYPE != "multiple_choice" or target not in range(choices_of(task, sample)):
        raise TaskError(f"{task.task_name!r} has no single right choice in document {sample['doc_id']}.")
    context, continuation = sample["arguments"][target]
    return context, continuation


def _described(content: Any) -> str:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, default=lambda value: type(value).__name__)
