"""Where answers leave the language that they should be in, and with which token they could have stayed in it."""

import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from langneurons.corpora.languages import label_of, language_of, scripts_of
from langneurons.corpora.purity import script
from langneurons.errors import TaskError
from langneurons.models import ModelView
from langneurons.settings import Prompting
from langneurons.tasks.answers import UNKNOWN
from langneurons.tasks.batching import scoring, tokenizer_of
from langneurons.tasks.completing import complete, decoded
from langneurons.tasks.confusion import Confusion
from langneurons.tasks.passes import (
    LEAST_WORDS,
    Identify,
    english_words,
    fasttext_language,
    has_checked_words,
    judged_lines,
    unpunctuated,
)
from langneurons.tasks.prompting import Prompts, fitting

COLUMNS = ["language", "item", "cluster", "tokens", "before", "token", "rival", "token_text", "rival_text", "rank"]
CANDIDATES = 32  # tokens that are tried at most, the likeliest first
CONTINUED = 12  # tokens by which it is judged in which language the model goes on
FOREIGN = 0.2  # share of a line's letters from which on those of another script make it one of another language
_LATIN_WORD = re.compile(r"[A-Za-z]+")


def leaves_at(
    text: str, language: str, words: Collection[str] = (), identify: Identify = fasttext_language
) -> int | None:
    r"""Find the place at which an answer leaves its language, in the first line that fails the benchmark's rules.

    In a line that passes but holds an English word, it is that word. In a line that is identified as another language
    it is the first letter of another script, where at least a fifth of its letters are of one; else the first word from
    which on five words are identified as another language. So it is exact at the beginning of lines and by script; a
    language that begins within a line may begin a word or two later.

    Args:
        text: The answer.
        language: Code of the language that it should be in.
        words: English words that are looked for in languages of another script than Latin.
        identify: Function from a line to the code of its language, or to "unknown".

    Returns:
        The number of characters before that place; None where the answer passes, or no place can be told.

    Example:
        >>> from langneurons.tasks.leaving import leaves_at
        >>> leaves_at("Llueve desde ayer en la ciudad.\nIt has been raining since yesterday.", "es")
        32
        >>> leaves_at("आज का weather बहुत अच्छा है।", "hi", words=["weather"])
        6
    """
    code = language_of(language)
    for place, line, divided in judged_lines(text, code):
        at = None
        if language_of(identify(unpunctuated(line))) != code:
            at = _foreign_letter(line, language)
            at = _foreign_words(line, code, identify) if at is None else at
        elif has_checked_words(language) and any(word.strip() in words for word in divided):
            at = next((match.start() for match in _LATIN_WORD.finditer(line) if match[0] in words), None)
        if at is not None:
            return place + at
    return None


def confusion_points(
    model: torch.nn.Module, task: Confusion, language: str, batch_size: int = 8
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Let a model answer in one language, and find in each failed answer the token with which it leaves the language.

    Its rival is the likeliest token in that place after which the model goes on in the right language: the 32 likeliest
    tokens that write a letter are tried, each continued greedily with 12 more, which are identified. So no list of a
    language's tokens is needed, and a token of some bytes of a letter counts as what it becomes.

    Args:
        model: A model returned by ``load_model``; whatever is attached to it at this moment counts.
        task: The task.
        language: Language that the answers should be in.
        batch_size: Texts per forward pass.

    Returns:
        One row per failed answer in which both tokens can be told: language, item, cluster, tokens (ids of all that
        precedes), before (the answer so far), token and rival (ids), token_text, rival_text, and rank (the rival's
        among all tokens, from 1); and numbers of answers, "answers", "judged", "failed", "left" (the token with which
        they leave the language can be told) and "points" (the rival too).

    Raises:
        LanguageError: If the task has no such language.
        TaskError: If the model has no tokenizer, or its context no room for an answer.

    Example:
        >>> from langneurons.tasks.leaving import confusion_points
        >>> prompts = pd.DataFrame([{"item": "1", "cluster": "1", "prompt": "The weather today"}])
        >>> points, counts = confusion_points(model, ln.tasks.Confusion({"en": prompts}, max_new_tokens=8), "en")
        >>> len(points), counts["answers"], counts["failed"]
        (0, 1, 0)
    """
    language = label_of(language, task.items)
    answers = task.measure(model, language, batch_size)
    failed = answers.loc[(answers["judged"] == 1) & (answers["word_pass"] == 0)]
    counts = {
        "answers": len(answers),
        "judged": int(answers["judged"].to_numpy().sum()),
        "failed": len(failed),
        "left": 0,
    }
    rows = []
    with scoring(model) as model_view:
        asking, room = Prompts(model_view, task.prompting), model_view.context_length - task.max_new_tokens
        search = _Search(model_view, task, language, batch_size)
        for answer in failed.to_dict("records"):
            prompt = fitting(asking.ids, answer["prompt"], room)[0]
            place = search.leaving_token(answer["generated"], answer["prediction"])
            counts["left"] += place is not None
            if place is not None and (point := search.point(prompt, answer["generated"], place)) is not None:
                rows.append({"language": language, "item": answer["item"], "cluster": answer["cluster"], **point})
    return pd.DataFrame(rows, columns=COLUMNS), {**counts, "points": len(rows)}


@dataclass(frozen=True)
class _Search:
    """The search for tokens in the answers of one model, in one language."""

    model_view: ModelView
    task: Confusion
    language: str
    batch_size: int

    @property
    def identify(self) -> Identify:
        return self.task.identify or fasttext_language

    def leaving_token(self, ids: Sequence[int], text: str) -> int | None:
        """The ordinal of the token that writes the first letter outside the language."""
        at = leaves_at(text, self.language, english_words(self.task.words) or (), self.identify)
        if at is None:
            return None
        tokenizer = tokenizer_of(self.model_view, TaskError)
        return bisect_right(range(len(ids)), at, key=lambda count: len(decoded(tokenizer, ids[: count + 1])))

    def point(self, prompt: Sequence[int], ids: Sequence[int], place: int) -> dict[str, object] | None:
        """Find the rival of a token of an answer; None where no token that is tried is in the language."""
        tokens, token = (*prompt, *ids[:place]), ids[place]
        if len(tokens) + 1 + CONTINUED > self.model_view.context_length:
            return None
        logits = self.model_view.logits_at(torch.tensor([tokens]), [len(tokens) - 1])[0, 0]
        ranked = logits.argsort(descending=True, stable=True).tolist()
        before = self._text(ids[:place])
        candidates = [rival for rival in ranked[:CANDIDATES] if rival != token and self._writes(ids[:place], rival)]
        for start in range(0, len(candidates), self.batch_size):
            part = candidates[start : start + self.batch_size]
            texts = self._continued(tokens, ids[:place], part)
            rival = next((rival for rival, text in zip(part, texts, strict=True) if self._in_language(text)), None)
            if rival is not None:
                names = {"token_text": self._added(ids[:place], token), "rival_text": self._added(ids[:place], rival)}
                about = {"tokens": tokens, "before": before, "token": token, "rival": rival}
                return {**about, **names, "rank": ranked.index(rival) + 1}
        return None

    def _text(self, ids: Sequence[int]) -> str:
        return decoded(tokenizer_of(self.model_view, TaskError), ids)

    def _added(self, before: Sequence[int], *ids: int) -> str:
        return self._text([*before, *ids])[len(self._text(before)) :]

    def _writes(self, before: Sequence[int], token: int) -> bool:
        """Whether a token writes a letter, or some bytes of one."""
        return any(sign.isalpha() or sign == "\N{REPLACEMENT CHARACTER}" for sign in self._added(before, token))

    def _continued(self, tokens: Sequence[int], before: Sequence[int], candidates: Sequence[int]) -> list[str]:
        """What the model writes from each candidate on."""
        prompts, greedy = [[*tokens, token] for token in candidates], Prompting(chat=self.task.prompting.chat)
        completions = complete(self.model_view.model, prompts, CONTINUED, (), self.batch_size, prompting=greedy)
        return [self._added(before, token, *rest.ids) for token, rest in zip(candidates, completions, strict=True)]

    def _in_language(self, text: str) -> bool:
        line = unpunctuated(" ".join(text.split()))
        in_script = _foreign_letter(line, self.language) is None
        return in_script and language_of(self.identify(line)) == language_of(self.language)


def _foreign_letter(line: str, language: str) -> int | None:
    """The place of the first letter of another script; None where fewer than a fifth are of one."""
    scripts = scripts_of(language)
    letters = [place for place, sign in enumerate(line) if sign.isalpha()]
    foreign = [place for place in letters if script(line[place]) not in scripts] if scripts else []
    return foreign[0] if foreign and len(foreign) >= FOREIGN * len(letters) else None


def _foreign_words(line: str, code: str, identify: Identify) -> int | None:
    """The place of the first word from which on as many words as a line needs are in another language."""
    words = [match for match in re.finditer(r"\S+", line) if any(map(str.isalnum, match[0]))]

    def language(first: int, last: int) -> str:
        return language_of(identify(unpunctuated(line[words[first].start() : words[last - 1].end()])))

    for first in range(max(1, len(words) - LEAST_WORDS + 1)):
        last = min(first + LEAST_WORDS, len(words))
        if language(first, last) not in (code, UNKNOWN):
            return words[first].start()
    return None
