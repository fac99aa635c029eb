"""Routers as sites: read, written and left out on tiny mixtures of experts, against forwards written by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import silu
from transformers import AutoConfig

import langneurons as ln
from langneurons.errors import HookSiteError, ModelError, TrainingError
from langneurons.models import ModelView, view
from langneurons.models.experts import ROUTER_SITES, output_of, router_sites
from langneurons.recording import records
from tests.tiny_families import EXPERTS, tiny_family
from tests.tiny_models import tiny_tokenizer

NAMED = ("mixtral", "qwen3-moe", "olmoe", "gpt-oss")
TOKENS = torch.randint(4, 101, (2, 12), generator=torch.Generator().manual_seed(1))
READ = [name for name in EXPERTS if name != "minimax-m2"]
SIGMOID = ("glm-4-moe",)

Change = Callable[[int, torch.Tensor], torch.Tensor]


@pytest.fixture(scope="module")
def loaded() -> Callable[[str], ModelView]:
    views: dict[str, ModelView] = {}

    def get(name: str) -> ModelView:
        if name not in views:
            model = ln.load_model(name, hf_model=tiny_family(name), tokenizer=tiny_tokenizer())
            views[name] = view(model)
        return views[name]

    return get


def router_of(mlp: Any) -> Any:
    return mlp.router if hasattr(mlp, "router") else mlp.gate


def expert_output(experts: Any, index: int, state: torch.Tensor) -> torch.Tensor:
    """What one expert makes of one token's state, from its matrices."""
    if hasattr(experts, "down_proj_bias"):  # GPT-OSS
        both = state @ experts.gate_up_proj[index] + experts.gate_up_proj_bias[index]
        gate, up = both[::2].clamp(max=experts.limit), both[1::2].clamp(-experts.limit, experts.limit)
        glu = gate * torch.sigmoid(experts.alpha * gate)
        return ((up + 1) * glu) @ experts.down_proj[index] + experts.down_proj_bias[index]
    gate, up = (experts.gate_up_proj[index] @ state).chunk(2)
    return experts.down_proj[index] @ (silu(gate) * up)


def by_hand(hf_model: Any, layer: int, mlp: Any, change: Change) -> Callable[..., Any]:
    """The forward of a sparse MLP, token by token, with other router logits."""
    router, normalised = router_of(mlp), getattr(hf_model.config, "norm_topk_prob", True)

    def forward(hidden: torch.Tensor) -> Any:
        outputs = []
        for state in hidden.reshape(-1, hidden.shape[-1]):
            logits = router.weight @ state + (router.bias if hasattr(router, "bias") else 0.0)
            probabilities = change(layer, logits).softmax(-1)
            chosen = probabilities.argsort(descending=True)[: router.top_k].tolist()
            total = sum(probabilities[index] for index in chosen) if normalised else 1.0
            parts = [probabilities[index] / total * expert_output(mlp.experts, index, state) for index in chosen]
            outputs.append(sum(parts))
        out = torch.stack(outputs).view(hidden.shape)
        return (out, None) if hasattr(mlp, "router") else out

    return forward


@torch.no_grad()
def logits_by_hand(name: str, change: Change) -> torch.Tensor:
    hf_model: Any = tiny_family(name)
    for index, layer in enumerate(hf_model.model.layers):
        layer.mlp.forward = by_hand(hf_model, index, layer.mlp, change)
    return hf_model(TOKENS).logits


def experts_of(model_view: ModelView, members: list[tuple[int, int]], site: str = "router") -> ln.NeuronSet:
    return ln.NeuronSet.of({"hi": members}, model_view.shape(site), site)


@torch.no_grad()
def patched(model_view: ModelView, *patches: Any) -> torch.Tensor:
    with ln.intervene(model_view.model, *patches):
        return model_view.model(TOKENS)


@pytest.mark.parametrize("name", NAMED)
def test_a_forward_by_hand_is_that_of_the_model(name):
    with torch.no_grad():
        expected = tiny_family(name)(TOKENS).logits
    torch.testing.assert_close(logits_by_hand(name, lambda layer, logits: logits), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", READ)
def test_probabilities_logits_and_choices_are_what_the_routers_of_the_hugging_face_model_give(name, loaded):
    model_view, hf_model = loaded(name), tiny_family(name)
    outputs: list[Any] = []
    for module in hf_model.modules():
        if hasattr(module, "experts"):
            router_of(module).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        hf_model(TOKENS)
    values: dict[str, list[torch.Tensor]] = {"router": [], "router_logits": [], "chosen": []}
    readers = {site: lambda row, read, rows=rows: rows.append(read) for site, rows in values.items()}
    with torch.no_grad(), model_view.reading(readers):
        model_view.forward(TOKENS)
    assert [len(rows) for rows in values.values()] == [len(outputs)] * 3 == [model_view.shape("router")[0]] * 3
    for row, (logits, _, indices) in enumerate(outputs):
        shape = (*TOKENS.shape, logits.shape[-1])
        scores = logits.sigmoid() if name in SIGMOID else logits.exp() / logits.exp().sum(-1, keepdim=True)
        torch.testing.assert_close(values["router_logits"][row], logits.view(shape), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(values["router"][row], scores.view(shape), atol=1e-5, rtol=1e-4)
        chosen = values["chosen"][row].view(-1, shape[-1])
        assert [set(mask.nonzero().flatten().tolist()) for mask in chosen] == [set(own) for own in indices.tolist()]


@pytest.mark.parametrize("name", NAMED)
def test_an_expert_of_probability_zero_is_never_chosen_and_the_others_are_renormalised(name, loaded):
    model_view = loaded(name)

    def without(layer: int, logits: torch.Tensor) -> torch.Tensor:
        banned = torch.tensor([1] if layer else [0, 2])
        return logits.index_fill(0, banned, -torch.inf)

    patch = ln.SetTo(experts_of(model_view, [(0, 0), (0, 2), (1, 1)]), 0.0)
    torch.testing.assert_close(patched(model_view, patch), logits_by_hand(name, without), atol=2e-5, rtol=1e-4)
    same = patched(model_view, ln.Scale(experts_of(model_view, [(0, 0), (0, 2), (1, 1)]), 0.0))
    torch.testing.assert_close(same, patched(model_view, patch), atol=0, rtol=0)


@pytest.mark.parametrize("name", NAMED)
def test_a_probability_is_set_and_the_others_keep_theirs_in_proportion(name, loaded):
    model_view = loaded(name)

    def half(layer: int, logits: torch.Tensor) -> torch.Tensor:
        if layer == 0:
            return logits
        probabilities = logits.softmax(-1) * 0.5 / (1 - logits.softmax(-1)[3])
        probabilities[3] = 0.5
        return probabilities.log()

    patch = ln.SetTo(experts_of(model_view, [(1, 3)]), 0.5)
    torch.testing.assert_close(patched(model_view, patch), logits_by_hand(name, half), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMED)
def test_logits_are_added_to_and_set_as_they_are(name, loaded):
    model_view = loaded(name)
    experts = experts_of(model_view, [(0, 1), (1, 2)], "router_logits")

    def changed(layer: int, logits: torch.Tensor) -> torch.Tensor:
        index = 2 if layer else 1
        return logits.index_add(0, torch.tensor([index]), torch.tensor([1.5]))

    added = patched(model_view, ln.Add(experts, 1.5))
    torch.testing.assert_close(added, logits_by_hand(name, changed), atol=2e-5, rtol=1e-4)
    in_turn = patched(model_view, ln.SetTo(experts, -3.0), ln.Add(experts, 4.5))

    def fixed(layer: int, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(0, torch.tensor([2 if layer else 1]), 1.5)

    torch.testing.assert_close(in_turn, logits_by_hand(name, fixed), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", READ)
def test_writing_what_was_read_changes_no_bit_and_nothing_stays_behind(name, loaded):
    model_view = loaded(name)
    plain = patched(model_view)
    everything = [(row, 1) for row in range(model_view.shape("router")[0])]
    for site in ("router", "router_logits"):
        experts = experts_of(model_view, everything, site)
        with ln.intervene(model_view.model, ln.Scale(experts, 1.0)):
            assert model_view.hooked
            torch.testing.assert_close(model_view.model(TOKENS), plain, atol=0, rtol=0)
        assert not torch.equal(patched(model_view, ln.SetTo(experts, 0.0)), plain)
    assert not model_view.hooked
    torch.testing.assert_close(patched(model_view), plain, atol=0, rtol=0)


@pytest.mark.parametrize("name", READ)
def test_an_expert_that_is_left_out_is_chosen_for_no_token_whatever_corrects_its_score(name, loaded, monkeypatch):
    model_view = loaded(name)
    experts, rows = experts_of(model_view, [(0, 0), (0, 1)]), []
    correction = getattr(model_view.routers["router"].placed[0].module, "e_score_correction_bias", torch.zeros(1))
    monkeypatch.setattr(correction, "data", torch.full_like(correction, -9.0).index_fill(0, torch.tensor([0]), 50.0))
    read = {"chosen": lambda row, chosen: rows.append(chosen), "router": lambda row, values: rows.append(values)}
    with torch.no_grad(), ln.intervene(model_view.model, ln.SetTo(experts, 0.0)), model_view.reading(read):
        model_view.forward(TOKENS)
    assert not rows[0][..., :2].any()
    assert (rows[1][..., :2] == 0).all()
    assert int(rows[0].sum()) == TOKENS.numel() * model_view.routers["router"].placed[0].top_k


def test_more_experts_than_a_token_can_do_without_are_not_left_out(loaded):
    model_view = loaded("mixtral")
    patch = ln.SetTo(experts_of(model_view, [(1, 0), (1, 1), (1, 2)]), 0.0)
    with pytest.raises(HookSiteError, match="Layer 1 chooses 2 of its 4 experts for every token, so 3 of them"):
        patched(model_view, patch)
    assert not model_view.hooked


def test_probabilities_beyond_one_are_one_and_gradients_reach_a_value(loaded):
    model_view = loaded("mixtral")
    experts, value = experts_of(model_view, [(1, 0)]), torch.tensor(0.3, requires_grad=True)
    with ln.intervene(model_view.model, ln.SetTo(experts, value)):
        model_view.model(TOKENS)[:, -1].logsumexp(-1).sum().backward()
    assert value.grad is not None
    assert value.grad.abs() > 0
    for site, most in (("router", 1.0), ("router_logits", 60.0)):
        probabilities: list[torch.Tensor] = []
        patch = ln.SetTo(experts_of(model_view, [(1, 0)], site), most)
        if site == "router":
            assert ln.patches.unreachable(model_view.model, ln.SetTo(experts, 1.5)) == 1
        reading = model_view.reading({"router": lambda row, values, to=probabilities: to.append(values)})
        with torch.no_grad(), ln.intervene(model_view.model, patch), reading:
            model_view.forward(TOKENS)
        assert probabilities[1][..., 0].min() > 0.999


@pytest.mark.parametrize("name", NAMED)
def test_patched_generation_is_the_same_with_a_cache_and_behind_padding(name, loaded):
    model_view = loaded(name)
    patch = ln.SetTo(experts_of(model_view, [(0, 1), (1, 0)]), 0.0)
    with torch.no_grad(), ln.intervene(model_view.model, patch):
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), TOKENS], 1)
        mask = (padded > 0).long()
        generated = model_view.generate(padded, mask, 4)
        tokens = TOKENS
        for _ in range(4):
            tokens = torch.cat([tokens, model_view.forward(tokens)[:, -1:].argmax(-1)], 1)
    assert generated == tokens[:, TOKENS.shape[1] :].tolist()


def test_rooms_without_a_model_know_the_sites_of_routers_by_the_same_names():
    assert ROUTER_SITES == records.ROUTER_SITES


def test_layers_of_the_site_are_those_with_experts(loaded):
    assert loaded("glm-4-moe").layers_at("router") == (1,)
    assert loaded("glm-4-moe").shape("router") == (1, 8)
    assert loaded("mixtral").layers_at("router") == loaded("mixtral").layers_at("head") == (0, 1)


def test_shared_experts_keep_the_sites_of_an_mlp(loaded):
    model_view, hf_model = loaded("qwen2-moe"), tiny_family("qwen2-moe")
    outputs: list[torch.Tensor] = []
    for layer in hf_model.model.layers:
        layer.mlp.shared_expert.act_fn.register_forward_hook(lambda module, inputs, act: outputs.append(act))
    values: list[torch.Tensor] = []
    with torch.no_grad():
        hf_model(TOKENS)
        with model_view.reading({"act": lambda layer, act: values.append(act)}):
            model_view.forward(TOKENS)
    # Experts have activation functions of their own; the shared expert's are the widest.
    torch.testing.assert_close(
        torch.stack(values), torch.stack(outputs).view(2, *TOKENS.shape, 40), atol=1e-5, rtol=1e-4
    )


def test_sites_of_an_mlp_are_refused_where_every_token_runs_experts_only(loaded):
    for site in ("act", "post"):
        with pytest.raises(HookSiteError, match="multiplies the matrices of all experts at once"):
            loaded("mixtral").shape(site)
    with pytest.raises(TrainingError, match="The MLP of layer 0 is a mixture of experts"):
        loaded("qwen2-moe").projection(0, "gate")
    assert loaded("qwen2-moe").projection(0, "q").target == "q"


def test_a_router_of_another_form_is_refused_in_a_sentence_before_any_weight_is_read(tmp_path):
    for name, settings in {"m2": {"model_type": "minimax_m2"}, "l4": {"model_type": "llama4_text"}}.items():
        AutoConfig.for_model(**settings).save_pretrained(tmp_path / name)
        with pytest.raises(ModelError, match="mixture of experts whose router has another form: "):
            ln.load_model(tmp_path / name)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda logits: logits, "it returns a Tensor"),
        (lambda logits: (logits, logits), "it returns 2 values"),
        (lambda logits: (logits, *logits[:, :3].topk(2)), "it returns tensors of|neither a softmax"),
        (lambda logits: (logits, logits.topk(2).indices, logits.topk(2).values), "it returns tensors of"),
        (lambda logits: (logits, torch.ones(len(logits), 2), logits.topk(2).indices), "neither a softmax nor"),
    ],
)
def test_what_a_router_must_give_is_checked(forward, reason, loaded):
    class Odd(torch.nn.Linear):
        def forward(self, states):
            return forward(super().forward(states))

    layer = replace(loaded("mixtral").layer(0), router=Odd(32, 4))
    with pytest.raises(ModelError, match=reason):
        router_sites([layer], 32, "odd")


def test_a_router_that_does_not_choose_by_its_product_is_refused(loaded):
    class Stubborn(torch.nn.Linear):
        def forward(self, states):
            logits = super().forward(states)
            own = (states @ self.weight.T + self.bias).argsort(descending=True)[:, :2]
            return logits, logits.softmax(-1).gather(-1, own), own

    layer = replace(loaded("mixtral").layer(0), router=Stubborn(32, 4))
    with pytest.raises(ModelError, match="it does not choose by the product of a matrix"):
        router_sites([layer], 32, "stubborn")


def test_what_a_router_reads_is_one_tensor():
    class Two(torch.nn.Linear):
        def forward(self, states, ids):
            return states

    with pytest.raises(ModelError, match="it reads more than the residual stream"):
        output_of(Two(32, 4), torch.zeros(1, 32), "two")
