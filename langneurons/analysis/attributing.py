"""attribute() and confusion_point(): which neurons make a model write one token, and not another in its place."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from langneurons import storage
from langneurons.analysis.attribution import Attribution
from langneurons.analysis.contributions import Contributions, contributions_at
from langneurons.analysis.metrics import AblationValue, Batch, TextMetric, measured_languages
from langneurons.analysis.running import UNPATCHED, Runner
from langneurons.effects.estimation import Effect, benjamini_hochberg, many_effects
from langneurons.effects.pairing import ROW
from langneurons.errors import EffectError, PatchError, TaskError
from langneurons.evaluation.evaluating import written_patches
from langneurons.identification import NeuronSet
from langneurons.models import ModelView, view
from langneurons.patches.intervening import intervene
from langneurons.patches.patch import Patch
from langneurons.run import alone_in_out
from langneurons.settings import (
    Attributing,
    AttributingOptions,
    ConfusionOptions,
    Prompting,
    Run,
    Testing,
    with_options,
)
from langneurons.tasks.batching import batches, token_ids, tokenizer_of
from langneurons.tasks.confusion import Confusion
from langneurons.tasks.leaving import confusion_points
from langneurons.tasks.prompting import Prompts
from langneurons.tasks.task import Task

Patches = Patch | Sequence[Patch]
VALUE = "logit difference"
SITE = "post"  # what W_out reads: what a neuron writes is this x its row of W_out
BATCH_SIZE = 8
PATCHED = "patched"
POINTS = ["language", "item", "cluster", "before", "token", "rival", "token_text", "rival_text", "rank", "difference"]


@dataclass(frozen=True, kw_only=True)
class TokenDifference(TextMetric):
    """The difference of two logits after each of some texts.

    Attributes:
        texts: Language -> item, cluster, tokens (all that precedes), token and rival (ids).
    """

    texts: Mapping[str, pd.DataFrame]

    @classmethod
    def of(cls, points: pd.DataFrame) -> "TokenDifference":
        """The metric of some points."""
        texts = {str(language): part for language, part in points.groupby("language", sort=False)}
        fingerprint = storage.fingerprint(
            repr(points.reindex(columns=["language", "item", "cluster", *_READ]).to_dict("list"))
        )
        return cls(VALUE, ROW, tuple(texts), fingerprint, texts=texts)

    def batches(self, model_view: ModelView, language: str, batch_size: int) -> Iterator[Batch]:
        """Texts with the differences after them."""
        table = self.texts[language]
        for rows, tokens in batches(table["tokens"].tolist(), batch_size, model_view.context_length):
            part = table.iloc[rows]
            yield Batch(tokens, part["item"].tolist(), part["cluster"].tolist(), partial(_differences, part, tokens))


_READ = ["tokens", "token", "rival"]


def _differences(
    part: pd.DataFrame, tokens: Int[Tensor, "text position"], model_view: ModelView, copies: int
) -> Float[np.ndarray, "copy text"]:
    counted = torch.zeros(len(tokens), tokens.shape[1] + 1, dtype=torch.bool)
    counted[torch.arange(len(tokens)), torch.tensor([len(ids) for ids in part["tokens"]])] = True
    read = model_view.predictions(tokens.repeat(copies, 1), counted.repeat(copies, 1)).logits()
    pairs_of_copies = repeat(
        torch.tensor(part[["token", "rival"]].to_numpy()), "text pair -> (copy text) pair", copy=copies
    )
    values, first = [], 0
    for logits in read:
        pairs = logits.gather(1, pairs_of_copies[first : first + len(logits)].to(logits.device)).double().cpu()
        values.append(pairs[:, 0] - pairs[:, 1])
        first += len(logits)
    return torch.cat(values).numpy().reshape(copies, -1)


@alone_in_out
def attribute(
    model: torch.nn.Module,
    prompt: str | Sequence[int],
    tokens: tuple[str | int, str | int],
    position: int = -1,
    patches: Patches = (),
    *,
    attributing: Attributing = Attributing(),
    prompting: Prompting = Prompting(),
    run: Run = Run(),
    **options: Unpack[AttributingOptions],
) -> Attribution:
    """Measure what every neuron adds to the difference of two tokens' logits, at one place of a text.

    Direct contributions are those of direct logit attribution: what a neuron writes, through the final norm and the
    unembedding, with the norm's scale frozen at what it is there. With those of attention, embeddings and biases they
    add up to the difference. The neurons with the largest are also ablated one by one, exactly.

    Args:
        model: A model returned by ``load_model``.
        prompt: The text, as a model is asked; or token ids, special tokens included.
        tokens: The token and its rival: each an id, or a text that is one token, such as ``" the"``.
        position: Position whose logits are read, those of the token that follows it; by default the last.
        patches: Patches that are written meanwhile.
        attributing: How many neurons are ablated as well.
        prompting: Whether the text is a message of a chat.
        run: Where it runs and is kept; rows per forward pass, 32 by default.
        options: Single fields of ``Attributing`` and ``Run``, such as ``exact=50``.

    Raises:
        TaskError: If a text is not one token, the two are equal, or the position is none of the prompt's.
        PatchError: If a patch does not fit, or does not write at all positions.
        ModelError: If contributions would not add up in this model, see ``contributions_at``.

    Example:
        >>> attribution = ln.analysis.attribute(model, "The children went to", (" the", " a"), exact=20, progress=False)
        >>> parts = attribution.rest["contribution"].sum()
        >>> bool(abs(parts - attribution.points["difference"].iloc[0]) < 1e-3)
        True
    """
    attributing, run = with_options(options, attributing, run)
    model_view = view(model)
    ids = tuple(Prompts(model_view, prompting).ids(prompt)) if isinstance(prompt, str) else tuple(prompt)
    if not -len(ids) <= position < len(ids):
        raise TaskError(f"The prompt has {len(ids)} tokens, so there is no position {position}.")
    token, rival = (_single(model_view, text) for text in tokens)
    if token == rival:
        raise TaskError(f"The two tokens are the same, {tokens[0]!r}: give two whose logits differ.")
    read = list(ids[: position % len(ids) + 1])
    decode = tokenizer_of(model_view, TaskError).decode
    texts = {"before": decode(read), "token_text": decode([token]), "rival_text": decode([rival])}
    point = {"language": "any", "item": 0, "cluster": 0, "tokens": tuple(read), "token": token, "rival": rival}
    points = pd.DataFrame([{**point, **texts, "rank": 1}])
    by_language = {"any": [patches] if isinstance(patches, Patch) else list(patches)}
    return _attributed(model, points, by_language, attributing.exact, Testing(), run)


@alone_in_out
def confusion_point(
    model: torch.nn.Module,
    task: Task,
    languages: Iterable[str] | None = None,
    patches: Patches | Callable[[str], Patches] = (),
    *,
    attributing: Attributing = Attributing(),
    testing: Testing = Testing(),
    run: Run = Run(),
    **options: Unpack[ConfusionOptions],
) -> Attribution:
    """Find out which neurons push the token with which failed answers leave their language.

    In every answer that fails the benchmark's rules, the first token outside the language is found, and the likeliest
    token in its place after which the model goes on in the right language (see ``tasks.leaving``). Contributions to the
    difference of their logits are averaged over failed answers, with intervals over clusters of prompts.

    Args:
        model: A model returned by ``load_model``.
        task: Prompts, and how answers are judged, such as ``ln.tasks.Confusion.load(...)``.
        languages: Languages that answers should be in; by default all of the task's.
        patches: Patches that are written while answers are generated and contributions are measured; or a function of
            the language that makes them.
        attributing: How many neurons are ablated as well.
        testing: The margin of equivalence (in logits), the interval's level and the resampling.
        run: Where it runs and what keeps the ablations; rows per forward pass, 32 by default.
        options: Single fields of ``Attributing``, ``Testing`` and ``Run``, such as ``out="runs/x"``.

    Returns:
        Contributions of every neuron in each language with a point; ``answers`` says how many answers there were.

    Raises:
        LanguageError: If the task has no such language.
        EffectError: If no answer fails in a place that can be told.
        PatchError: If a patch does not fit, or does not write at all positions.
        ModelError: If contributions would not add up in this model.

    Example:
        >>> prompts = pd.DataFrame({"item": [0, 1], "cluster": [0, 1], "prompt": ["The king has", "The children"]})
        >>> task = ln.tasks.Confusion({"en": prompts}, max_new_tokens=8)
        >>> ln.analysis.confusion_point(model, task, progress=False)
        Traceback (most recent call last):
            ...
        langneurons.errors.EffectError: There is no point to look at: en: 0 of ...
    """
    attributing, testing, run = with_options(options, attributing, testing, run)
    if not isinstance(task, Confusion):
        raise TaskError(f"Answers are judged by an ln.tasks.Confusion, not by a {type(task).__name__}.")
    codes = measured_languages(task.languages, languages)
    named = {} if isinstance(patches, Sequence) and not patches else {PATCHED: patches}
    by_language = {language: parts for (_, language), parts in written_patches(named, codes).items()}
    points, counts = [], []
    for language in codes:
        with intervene(model, *_checked(by_language.get(language, ()))):
            part, numbers = confusion_points(model, task, language, BATCH_SIZE)
        points.append(part)
        counts.append({"language": language, **numbers})
    if not (together := pd.concat(points, ignore_index=True)).size:
        raise EffectError(f"There is no point to look at: {_in_words(counts)}.")
    return _attributed(model, together, by_language, attributing.exact, testing, run, pd.DataFrame(counts))


def _attributed(
    model: torch.nn.Module,
    points: pd.DataFrame,
    patches: Mapping[str, Sequence[Patch]],
    exact: int,
    testing: Testing,
    run: Run,
    answers: pd.DataFrame | None = None,
) -> Attribution:
    """Measure contributions at points, language by language."""
    model_view, metric = view(model), TokenDifference.of(points)
    shape = model_view.shape(SITE)
    direct, rows, rest, differences = [], [], [], []
    for language, part in metric.texts.items():
        own_patches = _checked(patches.get(language, ()))
        with intervene(model, *own_patches):
            pairs = list(zip(part["token"], part["rival"], strict=True))
            contributions = contributions_at(model, part["tokens"].tolist(), pairs, BATCH_SIZE)
        mean = contributions.neurons.mean(0)
        largest = np.sort(np.argsort(-np.abs(mean).ravel(), kind="stable")[:exact])
        tested = NeuronSet({"all": largest}, shape, SITE, model_view.fingerprint, "largest direct contributions")
        runner = Runner(model, metric, AblationValue.of(0.0, None, tested), [language], run, own_patches)
        table = runner.alone(tested)[language].set_index("item").loc[part["item"]]
        with_it = table[UNPATCHED].to_numpy()[None]
        added = with_it - table[[str(index) for index in largest]].to_numpy().T
        in_direct = contributions.neurons.reshape(len(part), -1)[:, largest].T
        rows.append(_rows(language, part, largest, shape, added, in_direct, testing))
        rest.append(_rest(language, contributions))
        differences.append(contributions.difference)
        direct.append(torch.from_numpy(mean).float())
    settings = {
        "model": model_view.described,
        "site": SITE,
        "languages": list(metric.texts),
        "patch": "; ".join(dict.fromkeys(repr(patch) for parts in patches.values() for patch in parts)) or "unpatched",
        "exact": len(rows[0]),
        **testing.model_dump(include={"margin", "level", "seed"}),
        "resamples": testing.in_family(exact).samples,
    }
    points = pd.concat(metric.texts.values(), ignore_index=True).assign(difference=np.concatenate(differences))
    points = points.astype({"item": str, "cluster": str}).reindex(columns=POINTS)
    tables = (pd.concat(rows, ignore_index=True), pd.concat(rest, ignore_index=True), points)
    return Attribution(torch.stack(direct), *tables, answers, settings)


def _rows(
    language: str,
    part: pd.DataFrame,
    largest: Int[np.ndarray, " neuron"],
    shape: tuple[int, int],
    exact: Float[np.ndarray, "neuron point"],
    direct: Float[np.ndarray, "neuron point"],
    testing: Testing,
) -> pd.DataFrame:
    layer, neuron = np.divmod(largest, shape[1])
    rows = pd.DataFrame({"language": language, "layer": layer, "neuron": neuron})
    rows = rows.assign(direct=direct.mean(1), direct_low=np.nan, direct_high=np.nan, exact=exact.mean(1))
    sizes = {"items": len(part), "clusters": part["cluster"].nunique()}
    rows = rows.assign(**dict.fromkeys(["low", "high", "p", "p_adjusted"], np.nan), verdict="inconclusive")
    rows = rows.assign(detectable=np.inf, **sizes)
    if sizes["clusters"] < 2:
        return rows
    testing, total = testing.in_family(len(rows)), int(np.prod(shape))
    nothing = part[["item", "cluster"]].assign(**{VALUE: 0.0})

    def effects(values: np.ndarray) -> list[Effect]:
        return many_effects(values, nothing, VALUE, ROW, lower_is_better=True, testing=testing)

    of_exact, of_direct = effects(exact), effects(direct)
    p = np.array([np.nan if effect.p is None else effect.p for effect in of_exact])
    # Neurons that were not measured count as if nothing was found of them, and so the choice of others costs nothing.
    adjusted = benjamini_hochberg(np.append(p, np.ones(total - len(p))))[: len(p)]
    return rows.assign(
        direct_low=[effect.low for effect in of_direct],
        direct_high=[effect.high for effect in of_direct],
        low=[effect.low for effect in of_exact],
        high=[effect.high for effect in of_exact],
        p=p,
        p_adjusted=adjusted,
        verdict=[effect.judged(value) for effect, value in zip(of_exact, adjusted.tolist(), strict=True)],
        detectable=[effect.detectable_in(total) for effect in of_exact],
    )


def _rest(language: str, contributions: Contributions) -> pd.DataFrame:
    by_layer = {
        "attention": contributions.attention,
        "neurons": contributions.neurons.sum(2),
        "biases": contributions.biases,
    }
    rows: list[dict[str, Any]] = [
        {"part": part, "layer": float(layer), "contribution": value}
        for part, values in by_layer.items()
        for layer, value in enumerate(values.mean(0).tolist())
    ]
    whole = {"embedding": contributions.embedding, "output": contributions.output}
    rows += [{"part": part, "layer": np.nan, "contribution": float(values.mean())} for part, values in whole.items()]
    return pd.DataFrame(rows).assign(language=language)


def _checked(patches: Sequence[Patch]) -> Sequence[Patch]:
    for patch in patches:
        if patch.positions != "all":
            raise PatchError(
                f"A patch of {patch.positions} positions would write elsewhere when the answer is read again: "
                "positions must be 'all'."
            )
    return patches


def _single(model_view: ModelView, token: str | int) -> int:
    """The id of a token, or of a text that is one token."""
    size = len(tokenizer_of(model_view, TaskError))
    if isinstance(token, int):
        if not 0 <= token < size:
            raise TaskError(f"There is no token {token}: ids are 0 to {size - 1}.")
        return token
    [ids] = token_ids(model_view, [token])
    if len(ids) != 1:
        raise TaskError(f"{token!r} is {len(ids)} tokens of {model_view.name!r}: give a text that is one, or an id.")
    return ids[0]


def _in_words(counts: Iterable[Mapping[str, Any]]) -> str:
    return "; ".join(
        f"{row['language']}: {row['failed']} of {row['judged']} judged answers failed, {row['left']} of them at a "
        f"place that can be told, {row['points']} with a token of the right language among the likeliest"
        for row in counts
    )
