"""Sampled completions: a naive loop with the same random numbers, the model's probabilities, any batch and order."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

import langneurons as ln
from langneurons.errors import TaskError
from langneurons.models import view
from langneurons.settings import Prompting
from langneurons.tasks.completing import complete, completions
from langneurons.tasks.sampling import generator_of, nucleus
from tests.tiny_models import tiny_model, tiny_tokenizer

PROMPTS = [[1, 5], [1, 30, 31, 32, 33, 34], [1, *range(40, 70)], [1, 5, 6]]
WARM = Prompting(temperature=0.8, top_p=0.7, seed=3)


@pytest.fixture(scope="module", params=["hooked", "bridge"])
def model(request):
    return ln.load_model("llama", hf_model=tiny_model("llama"), tokenizer=tiny_tokenizer(), backend=request.param)


def ids_of(model, prompts, prompting, steps=6, **options):
    return [completion.ids for completion in complete(model, prompts, steps, (), prompting=prompting, **options)]


def naive(model, prompt, prompting, steps=6):
    """Whole forwards, transformers' own temperature and top-p, and the prompt's random numbers."""
    generator, text = generator_of(prompting.seed, prompt), list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            logits = view(model).forward(torch.tensor([text]))[:, -1].double()
        for warper in (TemperatureLogitsWarper(prompting.temperature), TopPLogitsWarper(prompting.top_p)):
            logits = warper(torch.tensor([text]), logits)
        waits = torch.empty(logits.shape[1], dtype=torch.float64).exponential_(generator=generator)
        text.append(int((logits[0].softmax(0) / waits).argmax()))
        if text[-1] in view(model).end_ids:
            break
    return text[len(prompt) :]


def test_what_is_sampled_is_what_a_loop_with_the_same_generator_draws(model):
    sampled = ids_of(model, PROMPTS, WARM)
    assert sampled == [naive(model, prompt, WARM) for prompt in PROMPTS]
    assert sampled != ids_of(model, PROMPTS, Prompting())


def test_both_backends_sample_the_same():
    models = [
        ln.load_model("llama", hf_model=tiny_model("llama"), tokenizer=tiny_tokenizer(), backend=backend)
        for backend in ("auto", "bridge")
    ]
    assert ids_of(models[0], PROMPTS, WARM) == ids_of(models[1], PROMPTS, WARM)


def test_a_sample_depends_on_seed_and_prompt_alone(model):
    sampled = ids_of(model, PROMPTS, WARM)
    for batch_size in (1, 3, 64):
        assert ids_of(model, PROMPTS, WARM, batch_size=batch_size) == sampled
    assert ids_of(model, PROMPTS[::-1], WARM) == sampled[::-1]
    assert ids_of(model, PROMPTS[2:3], WARM) == sampled[2:3]
    torch.manual_seed(9)
    assert ids_of(model, PROMPTS, WARM) == sampled
    assert ids_of(model, PROMPTS, WARM.model_copy(update={"seed": 4})) != sampled


def test_the_same_prompt_again_is_completed_anew(model):
    sampled = ids_of(model, [PROMPTS[0]] * 8, Prompting(temperature=1.0))
    assert len({tuple(ids) for ids in sampled}) > 4


def test_patches_change_samples_but_not_their_random_numbers(model):
    neurons = ln.NeuronSet.of({"hi": [(0, 0)]}, (2, 48), "act")
    nothing, much = ln.Scale(neurons, 1.0), ln.Add(neurons, 30.0)
    table = completions(model, ["w5 w6", "w7"], {"nothing": nothing, "much": much}, 6, temperature=0.9)
    assert table["unpatched"].tolist() == table["nothing"].tolist() != table["much"].tolist()


def test_tokens_are_drawn_with_the_models_probabilities(model):
    draws = 3000
    for prompting in (Prompting(temperature=0.5), Prompting(temperature=2.0, top_p=0.6)):
        ids = ids_of(model, [PROMPTS[1]] * draws, prompting, steps=1, batch_size=500)
        counts = np.bincount([row[0] for row in ids], minlength=101)
        with torch.no_grad():
            logits = view(model).forward(torch.tensor([PROMPTS[1]]))[:, -1].double()
        for warper in (TemperatureLogitsWarper(prompting.temperature), TopPLogitsWarper(prompting.top_p)):
            logits = warper(torch.tensor([PROMPTS[1]]), logits)
        expected = draws * logits[0].softmax(0).numpy()
        assert not counts[expected == 0].any()
        often = expected >= 5
        rest = [[values[~often].sum()] for values in (counts, expected)]
        pooled = [np.append(values[often], part) for values, part in zip((counts, expected), rest, strict=True)]
        keep = pooled[1] > 0
        assert keep.sum() > 3
        assert chisquare(pooled[0][keep], pooled[1][keep]).pvalue > 1e-3
        # The test can tell: it refuses the probabilities of twice the temperature.
        warmer = draws * (logits[0] / 2).softmax(0).numpy()
        pooled[1] = np.append(warmer[often], warmer[~often].sum())
        assert chisquare(pooled[0][keep], pooled[1][keep]).pvalue < 1e-3


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_is_that_of_transformers(top_p):
    logits = 3 * torch.randn(20, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(nucleus(logits, top_p), TopPLogitsWarper(top_p)(torch.zeros(20, 1).long(), logits))


def test_without_a_temperature_the_likeliest_token_is_taken(model):
    assert ids_of(model, PROMPTS, Prompting(seed=5, top_p=0.1)) == ids_of(model, PROMPTS, Prompting())
    cold = Prompting(temperature=1e-4)
    assert ids_of(model, PROMPTS, cold) == ids_of(model, PROMPTS, Prompting())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0 and finite, given -1"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, given 0"),
        ({"shots": -1}, "shots must be a whole number of at least 0, given -1"),
    ],
)
def test_what_is_no_way_to_sample_is_refused(options, message):
    with pytest.raises(TaskError, match=message):
        Prompting(**options)
