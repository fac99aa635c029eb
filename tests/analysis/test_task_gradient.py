"""CULNIG's score equals autograd token by token; a planted task neuron is on top, a shared one is not."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import langneurons as ln
from langneurons.errors import TaskError
from langneurons.models import view
from langneurons.tasks.continuations import continuation_scores
from langneurons.tasks.likelihood import Template
from tests.backends import BACKENDS
from tests.planted.network import HIDDEN, LAYERS, SPECIAL, directions, embedding, random_llama, set_gate
from tests.tiny_models import tiny_model, tiny_tokenizer, word_tokenizer

WORDS = {"entailment": "yes", "neutral": "maybe", "contradiction": "no"}
TASK_NEURON, SHARED_NEURON, WIDTH = (0, 5), (1, 9), 32


def xnli_of(words, rows, template="{premise} {hypothesis} {label}"):
    """A task whose label words are words of a tiny tokenizer."""
    columns = ["premise", "hypothesis", "label"]
    task = ln.XNLI.load({"en": pd.DataFrame(rows, columns=columns)})
    return replace(task, templates={"en": (Template(template, words),)})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("site", ["act", "pre"])
def test_scores_equal_autograd_token_by_token(backend, site):
    words = {"entailment": "w50 w51", "neutral": "w52", "contradiction": "w53 w54 w55"}
    rows = [("w5 w6 w7", "w8", "entailment"), ("w5 w6 w7", "w9 w10", "contradiction"), ("w20", "w21 w22", "neutral")]
    task, control = xnli_of(words, rows), xnli_of(words, [(second, first, label) for first, second, label in rows])
    model, hf_model = (
        ln.load_model("llama", hf_model=tiny_model("llama"), tokenizer=tiny_tokenizer(), backend=backend),
        tiny_model("llama"),
    )
    result = ln.analysis.task_gradient(model, task, control, site=site, batch_size=2, progress=False)
    of_task, of_control = (by_hand(hf_model, each.gold_texts(view(model), "en"), site) for each in (task, control))
    expected = of_task.mean(0) - np.maximum(of_control, 0).mean(0)
    assert result.scores["en"].numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6 * float(np.abs(expected).max()))
    # Two clusters: the first premise has two items.
    mean, sums, sizes = of_task.mean(0), np.stack([of_task[:2].sum(0), of_task[2]]), np.array([2, 1])
    variance = 2 * ((sums - sizes[:, None, None] * mean) ** 2).sum(0) / 9
    assert result.parts["variance"][0].numpy() == pytest.approx(variance, rel=1e-3, abs=1e-6 * float(variance.max()))


def by_hand(hf_model, texts, site):
    """p max_t a_t dp/da_t, one token and one autograd call at a time, on the model of transformers."""
    scores = []
    for ids, given in zip(texts["tokens"], texts["given"], strict=True):
        held = []

        def keep(module, inputs, outputs, held=held):
            outputs.retain_grad()
            held.append(outputs)

        modules = [layer.mlp.gate_proj if site == "pre" else layer.mlp.act_fn for layer in hf_model.model.layers]
        handles = [module.register_forward_hook(keep) for module in modules]
        log_p = hf_model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        for handle in handles:
            handle.remove()
        p = torch.stack([log_p[place - 1, ids[place]] for place in range(given, len(ids))]).sum().exp()
        p.backward()
        layers = []
        for values in held:
            by_token = [(values[0, t] * values.grad[0, t]).detach().numpy() for t in range(values.shape[1])]
            layers.append(float(p.detach()) * np.max(by_token, axis=0))
        scores.append(np.stack(layers))
    return np.stack(scores)


@pytest.fixture(scope="module")
def planted():
    """A model in which one neuron reads the task's cue and one every word; both push "yes", as the control's cue does.

    The control is answered as well by its cue itself, so that only the task needs the first neuron.
    """
    generator = torch.Generator().manual_seed(0)
    bias, cue, yes, plain = directions(generator)[:4]
    vocabulary = dict.fromkeys((*SPECIAL, *WORDS.values()), torch.zeros(HIDDEN))
    vocabulary |= {f"w{number}": bias for number in range(12)}
    vocabulary |= {"cue": bias + cue, "plain": bias + plain + 0.6 * yes}
    with torch.no_grad():
        network = random_llama(len(vocabulary), WIDTH, generator, attention=0.01, mlp=0.01)
        network.model.embed_tokens.weight.copy_(embedding(vocabulary, 0.02, generator))
        network.lm_head.weight.mul_(0.1)
        network.lm_head.weight[list(vocabulary).index("yes")] = yes / network.model.norm.weight
        for (layer, place), gate, size in ((TASK_NEURON, cue, 0.1), (SHARED_NEURON, bias, 0.05)):
            block = network.model.layers[layer]
            set_gate(block, place, gate)
            block.mlp.up_proj.weight[place] = gate / block.post_attention_layernorm.weight
            block.mlp.down_proj.weight[:, place] = size * yes
    model = ln.load_model("planted", hf_model=network, tokenizer=word_tokenizer(vocabulary))
    rows = [(f"w{n} w{n + 1} w{n + 2}", f"w{n + 3}", "entailment") for n in range(6)]
    of_cue = {word: [(first, f"{second} {word}", label) for first, second, label in rows] for word in ("cue", "plain")}
    return model, xnli_of(WORDS, of_cue["cue"]), xnli_of(WORDS, of_cue["plain"])


def test_the_planted_neuron_is_on_top_and_the_shared_one_is_removed_by_the_control(planted, tmp_path):
    model, task, control = planted
    alone = ln.analysis.task_gradient(model, task, top=2 / (LAYERS * WIDTH), progress=False)
    assert set(map(tuple, alone.neurons["en"].indices().tolist())) == {TASK_NEURON, SHARED_NEURON}
    result = ln.analysis.task_gradient(model, task, control, top=2 / (LAYERS * WIDTH), out=tmp_path, progress=False)
    assert int(result.scores["en"].argmax()) == TASK_NEURON[0] * WIDTH + TASK_NEURON[1]
    assert SHARED_NEURON not in map(tuple, result.neurons["en"].indices().tolist())
    low, _ = result.scores.interval()
    assert low[0][TASK_NEURON] > 0
    result.save(tmp_path / "saved")
    loaded = ln.load(tmp_path / "saved")
    assert repr(loaded) == repr(result)
    assert loaded.neurons == result.neurons
    assert loaded.neurons.site == "act"
    assert result.plot().data


def test_tasks_without_right_answers_as_texts_are_refused(planted):
    model, task, _ = planted
    prompts = pd.DataFrame({"item": [0], "cluster": [0], "prompt": ["w1"]})
    with pytest.raises(TaskError, match="'confusion' has no right answers whose likelihood could be read"):
        ln.analysis.task_gradient(model, ln.tasks.Confusion({"en": prompts}), progress=False)
    head = ln.tasks.ClassificationHead(torch.zeros(3, HIDDEN), torch.zeros(3), tuple(WORDS))
    with pytest.raises(TaskError, match="A head answers this task"):
        ln.analysis.task_gradient(model, task.with_head(head), progress=False)
    with pytest.raises(TaskError, match="'en' are one cluster"):
        ln.analysis.task_gradient(model, task.take(1), progress=False)


def test_the_harness_right_choices_are_the_requests_that_it_scores(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.api.instance import Instance

    from tests.tasks.harness_files import CONFIGURATIONS, questions, write_task

    model = ln.load_model("llama", hf_model=tiny_model("llama"), tokenizer=tiny_tokenizer())
    name = write_task(tmp_path, "choose_en", **CONFIGURATIONS["choices"])
    task = ln.tasks.harness(name, tmp_path)
    texts = task.gold_texts(view(model), "en")
    assert texts["item"].tolist() == task.items["en"]["item"].tolist()
    requests = [
        Instance("loglikelihood", {}, (f"{doc['passage']} {doc['question']}", f" {doc['choices'][doc['label']]}"), 0)
        for doc in questions()
    ]
    expected = [log_p for log_p, _ in ln.tasks.HarnessModel(model).loglikelihood(requests)]
    scores, _ = continuation_scores(model, list(zip(texts["tokens"], texts["given"], strict=True)))
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    result = ln.analysis.task_gradient(model, task, progress=False)
    assert result.items["probability"].tolist() == pytest.approx([np.exp(expected).mean()], rel=1e-4)
