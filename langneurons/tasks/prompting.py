"""Prompts as a model reads them: plain text, or a chat by the template of its tokenizer."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Literal

from jinja2 import TemplateError

from langneurons.errors import TaskError, in_short
from langneurons.models import ModelView
from langneurons.settings import Prompting
from langneurons.tasks.batching import front, token_ids, tokenizer_of

Solved = tuple[str, str]  # a question, and its answer
Messages = list[dict[str, str]]
BETWEEN = "\n\n"  # of solved examples and the question, in plain text
_ANSWER = "langneurons"  # a text that no template has


class Prompts:
    r"""How one model is asked questions: what it reads before each, and what ends its answer.

    Args:
        model_view: View of the model.
        prompting: Whether as a chat, and with which system prompt.
        examples: Solved examples to show in front of every question.

    Attributes:
        chat: Whether prompts go through the chat template.
        front: Tokens in front of every text; none in a chat, whose template writes them.

    Raises:
        ModelError: If the model has no tokenizer.
        TaskError: If the model has no chat template, or it refuses a message.

    Example:
        >>> from langneurons.models import view
        >>> from langneurons.tasks.prompting import Prompts
        >>> Prompts(view(model), examples=[("1 + 1 = ", "2")]).text("2 + 2 = ")
        '1 + 1 = 2\n\n2 + 2 = '
    """

    def __init__(
        self, model_view: ModelView, prompting: Prompting = Prompting(), examples: Sequence[Solved] = ()
    ) -> None:
        self._model_view, self._tokenizer = model_view, tokenizer_of(model_view)
        self._examples, self._system = examples, prompting.system
        self.chat = is_chat(model_view, prompting.chat)
        self.front = [] if self.chat else front(model_view)

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end an answer: the model's stop tokens, and in a chat what ends a turn."""
        turn = turn_end(self._model_view) if self.chat else None
        return tuple(dict.fromkeys([*self._model_view.end_ids, *([] if turn is None else [turn])]))

    def text(self, question: str) -> str:
        """Everything before the answer, from the first example on."""
        if not self.chat:
            return BETWEEN.join([*("".join(example) for example in self._examples), question])
        messages = [] if self._system is None else [_message("system", self._system)]
        for example, answer in self._examples:
            messages += [_message("user", example), _message("assistant", answer)]
        return _rendered(self._model_view, [*messages, _message("user", question)], add_generation_prompt=True)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts that begin as ``text`` gives them."""
        return [[*self.front, *ids] for ids in token_ids(self._model_view, texts)]

    def ids(self, question: str) -> list[int]:
        """The tokens of everything before the answer."""
        return self.tokens([self.text(question)])[0]


def fitting(ids: Callable[[str], list[int]], text: str, room: int) -> tuple[list[int], bool]:
    """The tokens of a prompt with as much of a text, from its beginning, as there is room for.

    Args:
        ids: Function from a text to the tokens of the prompt that holds it.
        text: The text.
        room: Number of tokens that the prompt may have.

    Returns:
        The tokens, and whether the text was cut.
    """
    if len(whole := ids(text)) <= room:
        return whole, False
    letters = bisect_right(range(len(text)), room, key=lambda count: len(ids(text[:count]))) - 1
    return ids(text[: max(letters, 0)]), True


def is_chat(model_view: ModelView, chat: bool | Literal["auto"]) -> bool:
    """Whether a model is asked by its chat template.

    Args:
        model_view: View of the model.
        chat: True, False, or "auto": where the template ends a turn with one of the model's stop tokens, which a base
            model with the template of its family does not.

    Raises:
        TaskError: If ``chat`` is True and the tokenizer has no template.
    """
    tokenizer = tokenizer_of(model_view)
    if chat is False:
        return False
    if not tokenizer.chat_template:
        if chat == "auto":
            return False
        raise TaskError(
            f"The tokenizer of {model_view.name!r} has no chat template, so chat=True is not possible: ask in plain "
            'text with chat=False or "auto", or give its chat_template.'
        )
    return chat is True or turn_end(model_view) in model_view.end_ids


def turn_end(model_view: ModelView) -> int | None:
    """The special token that a chat template writes after an answer, such as ``<|im_end|>``; None where it has none."""
    tokenizer = tokenizer_of(model_view)
    text = _rendered(model_view, [_message("user", "?"), _message("assistant", _ANSWER)])
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    [ids] = token_ids(model_view, [text.rpartition(_ANSWER)[2]])
    return next((token for token in ids if token in special), None)


def check_no_shots(prompting: Prompting, name: str) -> None:
    """Refuse examples where there are none to show.

    Raises:
        TaskError: If there should be some.
    """
    if prompting.shots:
        raise TaskError(f"There are no solved examples of {name}: shots must be 0, given {prompting.shots}.")


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content.strip()}


def _rendered(model_view: ModelView, messages: Messages, add_generation_prompt: bool = False) -> str:
    render = tokenizer_of(model_view).apply_chat_template
    try:
        return str(render(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except TemplateError as error:
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise TaskError(
            f"The chat template of {model_view.name!r} refuses messages of {roles} ({in_short(error)}): leave out "
            "system=, or ask in plain text."
        ) from error
