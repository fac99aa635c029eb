"""Generated answers beside the harness' own model for transformers, on the same weights, prompts and batch size."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

import langneurons as ln
from benchmarks.likelihood import BATCH
from benchmarks.llama import BACKENDS, loaded, of_processors, random_llama
from benchmarks.measuring import Settings, medians
from benchmarks.record import NARROW
from benchmarks.rows import Row

HOLD = 1.1
PROMPTS, LENGTHS, ANSWER = 24, (40, 120), 48  # questions of grade-school arithmetic are about as long; tokens
STOP = ("\n\n", "Question:")


def rows(settings: Settings) -> Iterator[Row]:
    """Compare on both backends of a model with many narrow layers and a large vocabulary."""
    if find_spec("lm_eval") is None:
        print("generation: lm-eval is not installed (pip install 'langneurons[harness]')", file=sys.stderr)
        return
    for backend, name in BACKENDS.items():
        hf_model = random_llama(of_processors(settings.tiny)[NARROW])
        yield of_model(f"{NARROW}, {name}", hf_model, loaded(hf_model, backend), settings)


def of_model(name: str, hf_model: Any, model: Any, settings: Settings) -> Row:
    """Compare on one model."""
    from lm_eval.api.instance import Instance  # noqa: PLC0415 (seconds, and an extra)
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    count, answer = (3, 4) if settings.tiny else (PROMPTS, ANSWER)
    options = {"until": list(STOP), "max_gen_toks": answer, "do_sample": False}
    texts = prompts(model.tokenizer, count)
    requests = [Instance("generate_until", {}, (text, options), index) for index, text in enumerate(texts)]
    theirs = HFLM(hf_model, tokenizer=model.tokenizer, batch_size=BATCH)
    ours = ln.tasks.HarnessModel(model, BATCH)
    taken = medians(
        {
            "theirs": lambda: theirs.generate_until(requests, disable_tqdm=True),
            "ours": lambda: ours.generate_until(requests),
        },
        settings.rounds,
    )
    detail = f"{count} prompts, {answer} new tokens: {taken['ours']:.1f} s"
    ratio = taken["ours"] / taken["theirs"]
    return Row(f"greedy answers, stop strings, {name}", "lm-eval's HFLM", ratio, at_most=HOLD, detail=detail)


def prompts(tokenizer: Any, count: int) -> list[str]:
    """Texts of random lengths."""
    draw = np.random.default_rng(0)
    ids = tokenizer(" ".join(ln.load_corpus("babel", ["en"])["en"]), add_special_tokens=False).input_ids
    starts = draw.integers(0, len(ids) - max(LENGTHS), count)
    return [tokenizer.decode(ids[start : start + draw.integers(*LENGTHS)]) for start in starts]
