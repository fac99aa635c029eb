"""Completing prompts, with whatever is attached to the model: for tasks, and to read side by side."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack, cast

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from langneurons.errors import FINITE_ADVICE, ModelError, TaskError
from langneurons.models import ModelView, start_token, view
from langneurons.models.finite import refusal
from langneurons.models.running import Draw
from langneurons.patches.intervening import check_fits, intervene
from langneurons.patches.patch import Patch
from langneurons.run import Progress
from langneurons.settings import Prompting, PromptingOptions, whole_number, with_options
from langneurons.tasks.batching import groups_of_neighbours, scoring, tokenizer_of
from langneurons.tasks.prompting import Prompts, check_no_shots, fitting
from langneurons.tasks.sampling import Sampler, generators_of


@dataclass(frozen=True)
class Completion:
    """The text that a model generated after a prompt.

    Args:
        ids: The generated token ids, including those that ended them.
        text: Their text, without the token that ended it and cut before the stop string.
        stopped: Whether a stop token or a stop string ended it, not the limit.
    """

    ids: list[int]
    text: str
    stopped: bool


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenise a prompt as corpora are: with the beginning-of-sequence token in front where the tokenizer writes one.

    Example:
        >>> prompt_ids(model.tokenizer, "Hello")[0] == model.tokenizer.bos_token_id
        True
    """
    start = start_token(tokenizer)
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids if start is None else [start, *ids]


def continuation_ids(tokenizer: PreTrainedTokenizerBase, text: str, continuation: str) -> list[int]:
    """Tokenise what follows a text as it would be in one piece, where a token ends with the text, or else by itself."""
    before, whole, alone = tokenizer(
        [text, text + continuation, continuation], add_special_tokens=False, verbose=False
    ).input_ids
    return whole[len(before) :] if whole[: len(before)] == before else alone


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What ends an answer: the end-of-sequence token, or a line break where the tokenizer has none."""
    eos = cast(int | None, tokenizer.eos_token_id)
    return tokenizer("\n", add_special_tokens=False, verbose=False).input_ids if eos is None else [eos]


def complete(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: Sequence[str] = ("\n",),
    batch_size: int = 8,
    progress: bool = False,
    min_new_tokens: int = 0,
    prompting: Prompting = Prompting(),
) -> list[Completion]:
    """Complete prompts, with whatever is attached to the model at this moment.

    Prompts of similar length share a batch, padded on the left. A completion does not depend on its neighbours, unless
    two tokens are equally likely up to rounding.

    Args:
        model: A model returned by ``load_model``.
        prompts: Token ids, special tokens included; see ``prompt_ids``.
        max_new_tokens: Maximum number of tokens of a completion.
        stop: Strings before which a completion ends; they count only after its first visible character.
        batch_size: Prompts per forward pass.
        progress: Whether to show a progress bar on standard error.
        min_new_tokens: Number of tokens before which no stop token can come.
        prompting: How tokens are chosen, by default greedily, and whether the end of a chat's turn stops a completion.

    Returns:
        Completions, in the order of the prompts.

    Raises:
        TaskError: If a prompt is empty or leaves no room for the completion, the model has no tokenizer, or a number
            is below 1.
        ModelError: If the model's logits are not finite.

    Example:
        >>> from langneurons.tasks.completing import complete, prompt_ids
        >>> prompt = prompt_ids(model.tokenizer, "The children went to")
        >>> [completion] = complete(model, [prompt], max_new_tokens=5)
        >>> completion.text, completion.stopped
        (' the school.', True)
    """
    model_view = view(model)
    for text in (prompt for prompt in prompts if isinstance(prompt, str)):
        raise TaskError(f"A prompt is token ids, not the text {text!r:.60}: prompt_ids(tokenizer, text) makes them.")
    _check(model_view, prompts, max_new_tokens, stop, batch_size)
    by_prompt: dict[int, Completion] = {}
    ends = Prompts(model_view, prompting).ends
    generators = generators_of(prompting.seed, prompts) if prompting.temperature else []
    bar = Progress(total=len(prompts), unit="prompt", shown=progress, smoothing=0.1)
    with bar, scoring(model):
        for length, rows in groups_of_neighbours(prompts, batch_size, model_view.context_length - max_new_tokens):
            batch, draw = [prompts[row] for row in rows], None
            if prompting.temperature:
                draw = Sampler(prompting.temperature, prompting.top_p, [generators[row] for row in rows])
            limits = {"max_new_tokens": max_new_tokens, "min_new_tokens": min_new_tokens, "ends": ends}
            by_prompt |= zip(rows.tolist(), _completed(model_view, batch, length, stop, draw, **limits), strict=True)
            bar.update(len(batch))
    return [by_prompt[index] for index in range(len(prompts))]


def answers_to(
    model: torch.nn.Module, texts: Iterable[str], max_new_tokens: int, batch_size: int, prompting: Prompting
) -> pd.DataFrame:
    """Answer texts with as much of each, from its beginning, as there is room for beside the answer.

    Args:
        model: A model returned by ``load_model``.
        texts: What is asked.
        max_new_tokens: Maximum number of tokens of an answer.
        batch_size: Texts per forward pass.
        prompting: Whether texts are messages of a chat, and how tokens are chosen.

    Returns:
        One row per text: prediction (the answer), cut (whether the text was), generated (token ids) and stopped
        (whether the model ended the answer itself).

    Raises:
        TaskError: If the model has no tokenizer, or its context no room for an answer.
    """
    model_view = view(model)
    tokenizer_of(model_view, TaskError)  # says if there is none
    asking, room = Prompts(model_view, prompting), model_view.context_length - max_new_tokens
    prompts, cut = zip(*(fitting(asking.ids, text, room) for text in texts), strict=True)
    completed = complete(model, prompts, max_new_tokens, (), batch_size, prompting=prompting)
    return pd.DataFrame(
        {
            "prediction": [completion.text for completion in completed],
            "cut": cut,
            "generated": [completion.ids for completion in completed],
            "stopped": [completion.stopped for completion in completed],
        }
    )


def completions(
    model: torch.nn.Module,
    prompts: Sequence[str],
    patches: Mapping[str, Patch | Sequence[Patch]],
    max_new_tokens: int = 30,
    stop: Sequence[str] = (),
    batch_size: int = 8,
    *,
    prompting: Prompting = Prompting(),
    **options: Unpack[PromptingOptions],
) -> pd.DataFrame:
    """Complete prompts without and with patches, to read side by side.

    Sampled completions use the same random numbers under every patch.

    Args:
        model: A model returned by ``load_model``.
        prompts: Texts to complete.
        patches: Name -> a patch, or several written together.
        max_new_tokens: Maximum number of tokens of a completion.
        stop: Strings before which a completion ends.
        batch_size: Prompts per forward pass.
        prompting: Whether prompts are messages of a chat, and how tokens are chosen; by default plain text, greedily.
        options: Single fields of ``prompting``, such as ``chat="auto"`` or ``temperature=0.7``.

    Returns:
        One row per prompt: prompt, unpatched, and a column per name.

    Raises:
        TaskError: If a prompt leaves no room for the completion, a patch is called "prompt" or "unpatched", or there is
            no chat template.
        PatchError: If a patch does not fit the model.
        SiteMismatchError: If neurons or values belong to another model.

    Example:
        >>> neurons = ln.LAPE(top=0.01).identify(stats)
        >>> force = ln.SetTo(neurons["hi"], stats["hi"].quantile(0.9))
        >>> table = completions(model, ["The weather today"], {"hi": force}, max_new_tokens=8)
        >>> table.columns.tolist()
        ['prompt', 'unpatched', 'hi']
    """
    (prompting,) = with_options(options, prompting)
    check_no_shots(prompting, "completions")
    model_view = view(model)
    conditions: dict[str, Sequence[Patch]] = {"unpatched": ()}
    for name, patch in patches.items():
        if name in ("prompt", "unpatched"):
            raise TaskError(f"A patch cannot be called {name!r}: another column has that name.")
        conditions[name] = [patch] if isinstance(patch, Patch) else patch
    for patch in (patch for condition in conditions.values() for patch in condition):
        check_fits(patch, model_view)
    tokenizer_of(model_view, TaskError)  # says if there is none
    asking = Prompts(model_view, prompting)
    ids = [asking.ids(prompt) for prompt in prompts]
    table: dict[str, list[str]] = {"prompt": list(prompts)}
    for name, condition in conditions.items():
        with intervene(model, *condition):
            completed = complete(model, ids, max_new_tokens, stop, batch_size, prompting=prompting)
            table[name] = [completion.text for completion in completed]
    return pd.DataFrame(table)


def _completed(
    model_view: ModelView,
    prompts: Sequence[Sequence[int]],
    length: int,
    stop: Sequence[str],
    draw: Draw | None,
    *,
    max_new_tokens: int,
    min_new_tokens: int,
    ends: Sequence[int],
) -> Iterator[Completion]:
    tokenizer = tokenizer_of(model_view)
    eos = cast(int | None, tokenizer.eos_token_id)
    padding = [length - len(prompt) for prompt in prompts]
    tokens = torch.tensor([[eos or 0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)])
    mask = (torch.arange(length) >= torch.tensor(padding)[:, None]).long()

    def stops(ids: Sequence[int]) -> bool:
        return _cut(_text(tokenizer, ids), stop)[1]

    try:
        stopping = stops if stop else None
        generated = model_view.generate(tokens, mask, max_new_tokens, stopping, ends, min_new_tokens, draw)
    except FloatingPointError as error:
        later = f"{model_view.name!r} does not compute finite numbers for what it generates itself. {FINITE_ADVICE}"
        raise ModelError(refusal(model_view, tokens, mask) or later) from error
    for ids in generated:
        ended = ids[-1] in ends
        text, cut = _cut(_text(tokenizer, ids[:-1] if ended else ids), stop)
        yield Completion(ids, text, cut or ended)


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of generated tokens; where the last are the first bytes of a character, a sign stands for them."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return decoded(tokenizer, ids).rstrip("\N{REPLACEMENT CHARACTER}")


def _cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Cut a text before the first stop string behind its first visible character, and say whether there was one."""
    visible = len(text) - len(text.lstrip())
    places = [place for string in stop if (place := text.find(string, visible)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _check(
    model_view: ModelView, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[str], batch_size: int
) -> None:
    tokenizer_of(model_view, TaskError)  # says if there is none
    max_new_tokens = whole_number(max_new_tokens, "max_new_tokens", TaskError)
    batch_size = whole_number(batch_size, "batch_size", TaskError)
    if max_new_tokens < 1 or batch_size < 1:
        raise TaskError(
            f"max_new_tokens and batch_size are at least 1, given {max_new_tokens} and {batch_size} (in this order)."
        )
    if isinstance(stop, str) or not all(stop):
        raise TaskError(f"stop is a sequence of strings that are not empty, such as ('\\n',), given {stop!r}.")
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise TaskError(f"Prompt {index} is empty: a model completes at least one token.")
        if len(prompt) + max_new_tokens > model_view.context_length:
            raise TaskError(
                f"Prompt {index} has {len(prompt)} tokens, and with {max_new_tokens} new ones it exceeds the context "
                f"of {model_view.name!r}, {model_view.context_length}: shorten it, or generate fewer."
            )
