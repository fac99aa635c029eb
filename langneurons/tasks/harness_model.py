"""A model as EleutherAI's lm-evaluation-harness asks it (extra ``harness``), with whatever is attached to it.

``python -m langneurons.tasks.harness_model`` is the harness' own command line, with ``--model langneurons`` added.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from langneurons.errors import TaskError
from langneurons.models import load_model, view
from langneurons.tasks.batching import tokenizer_of
from langneurons.tasks.completing import complete
from langneurons.tasks.continuations import Continuation, continuation_scores

try:
    from lm_eval import utils
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM, TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
except ModuleNotFoundError as error:
    raise TaskError(
        "Tasks of lm-evaluation-harness need the package lm-eval: pip install 'langneurons[harness]'."
    ) from error

Encoded = tuple[Any, list[int], list[int]]  # the texts, the tokens that are given, the tokens that are scored
ANSWER = 256  # tokens, where a task does not say


class HarnessModel(TemplateLM):
    """A model that answers the harness' requests; inside ``ln.intervene`` with patches.

    Texts are tokenised, cut from the left and split as the harness' own ``HFLM`` does, and scores are equal to its.

    Args:
        model: A model returned by ``load_model``.
        batch_size: Texts per forward pass.
        max_length: Tokens that a text is cut to; by default the model's context.

    Raises:
        TaskError: If the model has no tokenizer, or a number is out of bounds.

    Example:
        >>> from lm_eval.api.instance import Instance
        >>> request = Instance("loglikelihood", {}, ("The children went to", " the school"), 0, ("a task", 0, 1))
        >>> [(log_p, greedy)] = ln.tasks.HarnessModel(model).loglikelihood([request])
        >>> -20 < log_p < 0, type(greedy)
        (True, <class 'bool'>)
    """

    backend = "causal"

    def __init__(self, model: torch.nn.Module, batch_size: int = 8, max_length: int | None = None) -> None:
        super().__init__()
        self.view = view(model)
        self._device = self.view.device
        self.tokenizer = tokenizer_of(self.view, TaskError)
        self.batch_size, longest = int(batch_size), self.view.context_length
        self.max_length = longest if max_length is None else max_length
        if self.batch_size < 1 or not 1 <= self.max_length <= longest:
            raise TaskError(
                f"batch_size is at least 1 and max_length 1 to {longest}, given {batch_size} and {max_length}."
            )

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "HarnessModel":
        """Load the model that the harness' command line names: ``pretrained=NAME`` and options of ``load_model``."""
        options = {
            **arg_dict,
            **{name: value for name, value in (additional_config or {}).items() if value is not None},
        }
        own = {name: options.pop(name) for name in ("batch_size", "max_length") if name in options}
        options.pop("max_batch_size", None)
        if "device" not in arg_dict and not torch.cuda.is_available():
            options.pop("device", None)  # their command line names a GPU whether there is one or not
        if "pretrained" not in options:
            raise TaskError("--model langneurons needs --model_args pretrained=NAME, as load_model takes it.")
        return cls(load_model(options.pop("pretrained"), **options), **own)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> "HarnessModel":
        """Load the model that the harness' command line names, see ``create_from_arg_obj``."""
        return cls.create_from_arg_obj(utils.simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The id of the end-of-sequence token."""
        return cast(int, self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The id in front of a text that begins with what is scored."""
        bos = cast(int | None, self.tokenizer.bos_token_id)
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, for the harness' cache of requests."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Tokenise a text as the harness does: with the tokenizer's special tokens, unless the text begins with one."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(str(self.tokenizer.decode(self.prefix_token_id)))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation in the tokenizer's template."""
        if not self.tokenizer.chat_template:
            raise TaskError(f"The tokenizer of {self.view.name!r} has no chat template: ask without one.")
        options: Any = {"add_generation_prompt": add_generation_prompt, "tokenize": False}
        options["continue_final_message"] = not add_generation_prompt
        return str(self.tokenizer.apply_chat_template(chat_history, **options))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log p of whole texts, in windows of the context where they are longer."""
        windows: list[tuple[int, Encoded]] = []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(str(request.arguments[0]))
            divided = utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            windows += [(index, (None, *utils.make_disjoint_window(window))) for window in divided]
        log_p = np.zeros(len(requests))
        scores = [score for score, _ in self._loglikelihood_tokens([window for _, window in windows])]
        np.add.at(log_p, [index for index, _ in windows], scores)
        return log_p.tolist()

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate greedily, up to a stop string of each request."""
        end = str(self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False))
        by_settings: dict[tuple, list[int]] = {}
        for index, request in enumerate(requests):
            by_settings.setdefault(_generation(request.arguments[1], end), []).append(index)
        texts = [""] * len(requests)
        for (stop, max_new_tokens), indices in by_settings.items():
            room = self.max_length - max_new_tokens
            if room < 1:
                raise TaskError(
                    f"A task generates {max_new_tokens} tokens, and {self.view.name!r} takes {self.max_length} in all."
                )
            prompts = [self.tok_encode(requests[index].arguments[0])[-room:] for index in indices]
            completions = complete(self.view.model, prompts, max_new_tokens, stop, self.batch_size)
            for index, completion in zip(indices, completions, strict=True):
                # Their rules decide where a text ends: a stop string counts also where nothing stands before it.
                text = str(self.tokenizer.decode(completion.ids, skip_special_tokens=True))
                texts[index] = postprocess_generated_text(text, list(stop), None)
        return texts

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **options: Any) -> list[tuple[float, bool]]:
        scores, likeliest = continuation_scores(self.view.model, self._texts(requests), self.batch_size)
        return list(zip(scores.tolist(), likeliest.tolist(), strict=True))

    def _texts(self, requests: Sequence[Encoded]) -> list[Continuation]:
        texts = []
        for _, before, scored in requests:
            tokens = tuple(before + scored)[-(self.max_length + 1) :]
            texts.append((tokens, len(tokens) - len(scored)))
        if any(before < 1 for _, before in texts):
            raise TaskError(f"An answer of more than {self.max_length} tokens does not fit {self.view.name!r}.")
        return texts


class ReadingModel(HarnessModel):
    """A model that answers nothing, and keeps the requests as it would read them.

    Attributes:
        texts: The two texts of a request -> its tokens, and how many of them are given.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.texts: dict[tuple[str, str], Continuation] = {}

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **options: Any) -> list[tuple[float, bool]]:
        self.texts |= zip([tuple(request[0]) for request in requests], self._texts(requests), strict=True)
        return [(-1.0, False)] * len(requests)


class BlankModel(LM):
    """A model that answers nothing: it shows what tasks ask and which scores they give."""

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """No answer is likelier than another."""
        return [(-1.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """No text is likelier than another."""
        return [-1.0] * len(requests)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Every answer is empty."""
        return [""] * len(requests)


def _generation(settings: Mapping[str, Any], end: str) -> tuple[tuple[str, ...], int]:
    """The stop strings of a request, and how many tokens it may generate."""
    normal: Any = normalize_gen_kwargs(dict(settings), ANSWER)
    if normal.get("do_sample"):
        raise TaskError(f"Answers are generated greedily; this task samples them ({dict(settings)!s:.100}).")
    stop = tuple(string for string in handle_stop_sequences(normal.get("until"), end) if string)
    return stop, int(normal["max_gen_toks"])


register_model("langneurons")(HarnessModel)

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
