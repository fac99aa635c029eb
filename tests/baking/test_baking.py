"""A baked checkpoint, read by plain transformers, computes what the patched and trained model does."""

import itertools
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import langneurons as ln
from langneurons.baking import checkpoint, folding
from langneurons.baking.baked import Baked
from langneurons.errors import ModelError, PatchError, SiteMismatchError, StorageError, TrainingError
from langneurons.models import start_token, view
from langneurons.models.dictionaries import SparseDictionary, SparseDictionaryConfig, add_dictionary
from langneurons.models.sites import LINEAR_SITES
from tests.backends import loadable
from tests.tasks.harness_files import ASK, CHOICE, GENERATE, generation, write_task
from tests.tiny_models import save_tiny, tiny_tokenizer
from tests.training.lora_models import TOKENS, every_kind, trained
from tests.training.small import shift

PAIRS = [
    ("llama", "hooked"),
    ("llama", "bridge"),
    ("mistral", "hooked"),
    ("mistral", "bridge"),
    ("qwen2", "hooked"),
    ("qwen2", "bridge"),
    ("qwen3", "hooked"),
    ("gemma2", "bridge"),
    ("gemma3", "bridge"),
    ("gpt2", "hooked"),
    ("gpt2", "bridge"),
    ("opt", "hooked"),
    ("opt", "bridge"),
    ("bloom", "hooked"),
    ("bloom", "bridge"),
    ("phi3", "bridge"),
]
PLAIN = ("gpt2", "opt", "bloom")  # their MLPs have no gate, and all of their matrices have biases
SEVERAL = ((0, 1), (0, 3), (1, 7))


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Loads a tiny model of its own folder, once a module."""
    loaded = {}

    def get(architecture, backend="auto", **options):
        key = (architecture, backend, *options.items())
        if key not in loaded:
            folder = save_tiny(tmp_path_factory.mktemp("models") / architecture, architecture)
            loaded[key] = ln.load_model(folder, backend=backend, **options)
        return loaded[key]

    return get


@pytest.fixture(params=loadable(PAIRS), ids="-".join)
def model(request, load):
    return load(*request.param)


def neurons(model, site="act", units=SEVERAL) -> ln.NeuronSet:
    model_view = view(model)
    return ln.NeuronSet.of({"hi": list(units)}, model_view.shape(site), site, model_view.fingerprint)


def heads(model) -> ln.NeuronSet:
    return neurons(model, "head", ((0, 1), (1, 2)))


def kind_of(model) -> str:
    return Path(view(model).loaded_as["name"]).name


@torch.no_grad()
def logits_of(model, patches=(), updates=()) -> torch.Tensor:
    with ln.intervene(model, *patches):
        if not updates:
            return view(model).forward(TOKENS)
        with updates[0].attach(model):
            return logits_of(model, (), updates[1:])


@torch.no_grad()
def plain_logits(folder: Path) -> torch.Tensor:
    hf_model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return hf_model.eval()(TOKENS).logits


def assert_baked(model, folder, patches=(), updates=()):
    """Save, and compare with the running model; what is changed must be more than what is tolerated."""
    expected = logits_of(model, patches, updates)
    assert ln.bake(model, patches, updates).save(folder) == folder
    tolerance = 1e-5 * max(1.0, float(expected.std()))
    assert float((logits_of(model) - expected).abs().max()) > 100 * tolerance
    torch.testing.assert_close(plain_logits(folder), expected, rtol=0, atol=2 * tolerance)


def test_neurons_and_heads_are_switched_off_and_scaled_in_every_architecture(model, tmp_path):
    patches = [
        ln.SetTo(neurons(model), 0.0),
        ln.Scale(neurons(model, units=((0, 5), (1, 7))), -0.5),
        ln.Scale(neurons(model, "post", ((0, 6), (0, 5))), 3.0),
        ln.Scale(neurons(model, "pre", ((0, 9), (1, 8))), 2.0),
        ln.SetTo(heads(model), 0.0),
        *(ln.Scale(neurons(model, site, ((0, 2), (1, 9))), 2.0) for site in LINEAR_SITES if site in view(model).sites),
        ln.SetTo(neurons(model, "v", ((0, 5),)), 0.0),
    ]
    assert_baked(model, tmp_path / "baked", patches)


def test_updates_are_merged_in_every_architecture(model, tmp_path):
    rows = ln.MaskedRows(neurons(model, "k"), ("k",))
    assert_baked(model, tmp_path / "baked", updates=[trained(every_kind(model)[0], model), trained(rows, model)])


def test_updates_come_before_patches_in_every_architecture(model, tmp_path):
    patches = [ln.Scale(neurons(model, "post", ((0, 1), (0, 5), (1, 2))), 2.0), ln.SetTo(heads(model), 0.0)]
    assert_baked(model, tmp_path / "baked", patches, [trained(every_kind(model)[1], model)])


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_kind_of_update_is_merged_alone_and_after_others(load, architecture, tmp_path):
    model = load(architecture)
    updates = [trained(update, model, steps=1) for update in every_kind(model)]
    assert_baked(model, tmp_path / "alone", updates=updates[2:])
    # IA3 on down scales the model's own columns, whatever the others make of them.
    for number, order in enumerate(itertools.permutations(updates)):
        assert_baked(model, tmp_path / str(number), updates=order)


@pytest.mark.parametrize("architecture", PLAIN)
@pytest.mark.parametrize("site", ["pre", "act", "post", "q", "head", "resid_post"])
def test_constants_go_into_the_biases_that_a_plain_model_has(load, architecture, site, tmp_path):
    model = load(architecture)
    units = neurons(model, site, ((0, 1), (1, 3), (1, 2)))
    assert_baked(model, tmp_path / "added", [ln.Add(units, 0.7)])
    if site != "resid_post":
        assert_baked(model, tmp_path / "set", [ln.SetTo(units, -1.5)])
    assert "mlp_bias" not in (tmp_path / "added" / "config.json").read_text()


@pytest.mark.parametrize("backend", [backend for _, backend in loadable([("llama", "hooked"), ("llama", "bridge")])])
def test_constants_turn_on_the_biases_that_a_llama_can_have(load, backend, tmp_path):
    model = load("llama", backend)
    constants = {
        "pre": [ln.Add(neurons(model, "pre"), 0.5)],
        "act": [ln.SetTo(neurons(model), torch.tensor([0.4, 2.0, -0.2]), site="act")],
        "post": [ln.SetTo(neurons(model, "post"), -3.0)],
        "residual": [ln.Add(neurons(model, "resid_post"), 1.5)],
    }
    for name, patches in constants.items():
        assert_baked(model, tmp_path / name, patches)
        assert '"mlp_bias": true' in (tmp_path / name / "config.json").read_text()
        assert "mlp_bias" in (tmp_path / name / "README.md").read_text()
    assert_baked(model, tmp_path / "up", [ln.Add(neurons(model, "up"), 1.5)])
    assert '"mlp_bias": true' in (tmp_path / "up" / "config.json").read_text()
    for name, patch in {"head": ln.Add(heads(model), 0.5), "k": ln.SetTo(neurons(model, "k"), 2.0)}.items():
        assert_baked(model, tmp_path / name, [patch])
        config = (tmp_path / name / "config.json").read_text()
        assert '"attention_bias": true' in config
        assert '"mlp_bias": false' in config


@pytest.mark.parametrize("seed", range(6))
def test_overlapping_patches_act_in_order_at_every_site(load, seed, tmp_path):
    model, generator = load("llama"), torch.Generator().manual_seed(seed)
    sites = ("pre", "post", "act", "up", "q", "v", "head")
    kinds = list(itertools.product(sites, (ln.SetTo, ln.Add, ln.Scale)))
    patches = []
    for index in torch.randperm(len(kinds), generator=generator).tolist():
        site, kind = kinds[index]
        if (site, kind) != ("act", ln.Add):
            units = [(0, unit) for unit in torch.randperm(4, generator=generator)[:2].tolist()]
            patches.append(kind(neurons(model, site, units), float(torch.rand((), generator=generator)) + 0.2))
    assert_baked(model, tmp_path / "baked", patches)


def test_a_sum_after_a_constant_is_a_constant_of_act(load, tmp_path):
    model = load("llama")
    patches = [ln.SetTo(neurons(model), 1.0), ln.Scale(neurons(model), 2.0), ln.Add(neurons(model), -0.5)]
    assert_baked(model, tmp_path / "baked", patches)


def test_some_layers_only_and_values_of_each_neuron(load, tmp_path):
    model = load("gpt2")
    values = torch.randn(view(model).shape("act"), generator=torch.Generator().manual_seed(3))
    patch = ln.Scale(neurons(model), values, site="act", layers=[1])
    assert_baked(model, tmp_path / "baked", [patch])
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "baked").state_dict()
    before = AutoModelForCausalLM.from_pretrained(view(model).loaded_as["name"]).state_dict()
    changed = {name: before[name] != weights[name] for name in before if not torch.equal(before[name], weights[name])}
    assert list(changed) == ["transformer.h.1.mlp.c_proj.weight"]
    assert changed["transformer.h.1.mlp.c_proj.weight"].any(dim=1).nonzero().flatten().tolist() == [7]


@pytest.fixture(scope="module")
def stats(babel):
    recording = ln.Recording(tokens_per_language=500, context_length=64, sites=("act", "resid_post"))
    return ln.record(babel, ln.load_corpus("babel", ["en", "hi"]), recording=recording, progress=False)


def test_steering_by_a_difference_of_means_is_a_bias(babel, stats, tmp_path):
    steering = ln.DiffMean.everywhere(stats.at("resid_post"), "hi", 0.5, layers=[3, 4])
    assert_baked(babel, tmp_path / "steered", [steering])


def test_a_baked_babel_is_babel_for_everything_else(babel, stats, tmp_path):
    hindi = ln.LAPE(top=0.01).identify(stats.at("act"))["hi"]
    patch = ln.SetTo(hindi, stats.at("act")["hi"].quantile(0.6))
    folder = ln.bake(babel, patch).save(tmp_path / "baked")
    baked, corpus = ln.load_model(folder), ln.load_corpus("babel", ["en", "hi"])
    assert view(baked).backend == "bridge"
    # Its own tokenizer leaves the start token to the caller, which no other engine knows of.
    assert start_token(view(baked).tokenizer) == start_token(view(babel).tokenizer)
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"] == [1, *view(babel).tokenizer("a")["input_ids"]]
    text = ln.HeldoutText.of(babel, corpus, tokens_per_language=500)
    with ln.intervene(babel, patch):
        expected = ln.perplexity(babel, text, progress=False)
    actual = ln.perplexity(baked, ln.HeldoutText.of(baked, corpus, tokens_per_language=500), progress=False)
    torch.testing.assert_close(torch.tensor(actual["nll"]), torch.tensor(expected["nll"]), rtol=1e-5, atol=0)


def test_what_was_baked_can_be_baked_again(load, tmp_path):
    model = load("llama")
    ln.bake(model, ln.SetTo(neurons(model), 0.5)).save(tmp_path / "once")
    once = ln.load_model(tmp_path / "once")
    assert view(once).fingerprint != view(model).fingerprint
    assert_baked(once, tmp_path / "twice", [ln.Add(neurons(once, "post", ((0, 8),)), 2.0), ln.Scale(heads(once), 2.0)])
    twice = ln.load_model(tmp_path / "twice")
    assert view(twice).fingerprint not in (view(once).fingerprint, view(model).fingerprint)
    with pytest.raises(SiteMismatchError, match="belong to model"):
        ln.bake(twice, ln.SetTo(neurons(model), 0.0))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_weights_are_stored_in_the_dtype_that_was_loaded(load, architecture, dtype, tmp_path):
    model = load(architecture, dtype=dtype)
    patches, update = [ln.SetTo(neurons(model), 0.0)], trained(every_kind(model)[0], model, steps=1)
    ln.bake(model, patches, update).save(tmp_path / "baked")
    hf_model = AutoModelForCausalLM.from_pretrained(tmp_path / "baked", dtype="auto")
    assert hf_model.dtype == getattr(torch, dtype)
    expected = logits_of(model, patches, [update]).float()
    with torch.no_grad():
        difference = hf_model(TOKENS).logits.float() - expected
    assert float(difference.pow(2).mean().sqrt() / expected.std()) < {"bfloat16": 0.1, "float16": 0.02}[dtype]


def test_the_folder_holds_all_that_belongs_to_a_checkpoint(tmp_path):
    folder = save_tiny(tmp_path / "base", "llama")
    GenerationConfig(eos_token_id=[2, 5], max_new_tokens=7).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: invented-1.0\n---\n# Base\n", "utf-8")
    model = ln.load_model(folder)
    update = trained(every_kind(model)[0], model)
    patch = ln.SetTo(neurons(model), 0.25)
    baked = ln.bake(model, patch, update)
    assert repr(baked) == "Baked(base: 1 patch, 1 update)"
    baked.save(tmp_path / "baked")
    assert GenerationConfig.from_pretrained(tmp_path / "baked").eos_token_id == [2, 5]
    assert AutoTokenizer.from_pretrained(tmp_path / "baked").get_vocab() == view(model).tokenizer.get_vocab()
    card = (tmp_path / "baked" / "README.md").read_text("utf-8")
    fingerprints = [view(model).fingerprint, view(ln.load_model(tmp_path / "baked")).fingerprint]
    for part in (
        *fingerprints,
        repr(patch),
        repr(update),
        ln.__version__,
        "license: other",
        "invented-1.0",
        "mlp_bias",
    ):
        assert part in card
    assert str(tmp_path) not in card
    assert not list(tmp_path.glob(".*"))


def test_the_harness_gives_a_baked_model_the_scores_of_the_patched_one(load, tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    write_task(tmp_path, "choices", **CHOICE, doc_to_text=ASK, doc_to_choice="choices")
    write_task(tmp_path, "answer", **GENERATE, doc_to_text=ASK, generation_kwargs=generation())
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)

    def samples(model, **options):
        names = ["choices", "answer"]
        result = simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=0, batch_size=4, **options)
        return [[sample["filtered_resps"] for sample in result["samples"][name]] for name in names], result["results"]

    model = load("llama")
    patch, update = (
        ln.SetTo(neurons(model, units=[(0, n) for n in range(24)]), 1.0),
        trained(every_kind(model)[0], model),
    )
    unpatched, _ = samples(ln.tasks.HarnessModel(model))
    with update.attach(model), ln.intervene(model, patch):
        expected, scores = samples(ln.tasks.HarnessModel(model))
    folder = ln.bake(model, patch, update).save(tmp_path / "baked")
    actual, theirs = samples("hf", model_args={"pretrained": str(folder), "dtype": "float32"}, device="cpu")
    assert actual[1] == expected[1] != unpatched[1]
    for answers, other in zip(actual[0], expected[0], strict=True):
        assert [greedy for _, greedy in answers] == [greedy for _, greedy in other]
        torch.testing.assert_close(
            torch.tensor([float(log_p) for log_p, _ in answers]),
            torch.tensor([float(log_p) for log_p, _ in other]),
            rtol=0,
            atol=1e-4,
        )
    assert theirs["choices"]["acc,none"] == scores["choices"]["acc,none"]


def refused(model, patches=(), updates=(), error=PatchError):
    with pytest.raises(error) as raised:
        ln.bake(model, patches, updates)
    assert str(raised.value).count("\n") == 0
    return str(raised.value)


def test_what_weights_cannot_do_anywhere_is_refused(load):
    model = load("gpt2")
    for positions in ("prompt", "generated"):
        assert "same at every position" in refused(model, ln.SetTo(neurons(model), 0.0, positions=positions))
    assert "limits what neurons do" in refused(model, ln.Clamp(neurons(model), low=0.0))
    for patch in (ln.SetTo(neurons(model, "resid_post"), 0.0), ln.Scale(neurons(model, "resid_post"), 2.0)):
        assert "SetTo and Scale at resid_post cannot be baked: Add and DiffMean can" in refused(model, patch)


def test_what_gated_mlps_cannot_do_is_refused(load):
    model = load("llama")
    added = [ln.Add(neurons(model), 0.5)]
    assert "adds to act, which its MLPs multiply by up: add at pre or post" in refused(model, added)
    assert "adds to act" in refused(model, [ln.Scale(neurons(model), 2.0), *added])
    sentence = refused(model, ln.SetTo(neurons(model), -1.0))
    assert "gives -0.278 to inf, and no weight makes it give -1: choose a value it can give" in sentence


@pytest.mark.parametrize("architecture", ["mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_constants_are_refused_where_there_can_be_no_bias(load, architecture):
    model = load(architecture)
    for site in ("pre", "act", "post"):
        sentence = refused(model, ln.SetTo(neurons(model, site), 0.5))
        assert "A constant needs a bias of model.layers.0.mlp." in sentence
        assert "ForCausalLM) can have none there: write it while the model runs, with ln.intervene" in sentence


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_sums_are_refused_where_the_output_of_the_mlp_is_normalised(load, architecture):
    model = load(architecture)
    assert "normalised or scaled before it is added" in refused(model, ln.Add(neurons(model, "resid_post"), 1.0))


def test_features_of_dictionaries_are_refused(tmp_path):
    model = ln.load_model(save_tiny(tmp_path / "llama", "llama"))
    cfg = SparseDictionaryConfig(d_in=32, d_sae=20, architecture="topk", hook_name="blocks.0.hook_resid_post", k=4)
    add_dictionary(model, SparseDictionary(cfg))
    units = ln.NeuronSet.of({"hi": [(0, 1)]}, view(model).shape("features"), "features")
    assert "are a dictionary's and no weights" in refused(model, ln.SetTo(units, 0.0))


def test_a_patch_of_one_s_own_is_refused(load):
    class Squared(ln.patches.Patch):
        value_names = ()

        def written(self, current, **values):
            return current**2

    model = load("llama")
    assert "is no SetTo, Add, Scale or DiffMean" in refused(model, Squared(neurons(model)))


def test_what_cannot_be_merged_is_refused(load, tmp_path):
    model, other = load("llama"), load("mistral")
    update = trained(every_kind(model)[0], model)
    assert "not Shift" in refused(model, updates=shift(model), error=TrainingError)
    assert "made for the weights" in refused(other, updates=update, error=TrainingError)
    assert "nothing to bake" in refused(model)
    with update.attach(model):
        assert "Something is attached" in refused(model, updates=update)
    with ln.intervene(model, ln.SetTo(neurons(model), 0.0)):
        assert "Something is attached" in refused(model, ln.SetTo(neurons(model), 0.0))


def test_weights_that_are_not_the_checkpoint_s_are_refused(tmp_path):
    folder = save_tiny(tmp_path / "llama", "llama")
    model = ln.load_model(folder)
    update, other = (trained(update, model) for update in every_kind(model)[:2])
    update.merge(model)
    assert "is merged into a model" in refused(model, updates=update, error=TrainingError)
    with pytest.raises(ModelError, match="'llama' has updates merged into it: unmerge them and give them as updates="):
        ln.bake(model, updates=other).save(tmp_path / "baked")
    update.unmerge(model)
    ln.bake(model, updates=[update, other]).save(tmp_path / "baked")
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(ModelError, match="are not those of its checkpoint .*: load it again"):
        ln.bake(model, ln.Scale(neurons(load_again(folder)), 2.0, allow_site_mismatch=True)).save(tmp_path / "again")
    in_memory = AutoModelForCausalLM.from_pretrained(folder)
    model = ln.load_model("mine", hf_model=in_memory, tokenizer=tiny_tokenizer())
    assert "save it with hf_model.save_pretrained" in refused(model, ln.Scale(neurons(model), 2.0), error=ModelError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baked", "llama"]


def load_again(folder):
    return ln.load_model(folder)


def test_quantised_weights_are_refused(load, monkeypatch):
    model = load("llama")
    config = checkpoint.load_config(view(model).loaded_as["name"])
    config.quantization_config = {"quant_method": "invented"}
    monkeypatch.setattr(checkpoint, "load_config", lambda *arguments: config)
    assert "are quantised" in refused(model, ln.Scale(neurons(model), 2.0), error=ModelError)


def test_a_folder_that_exists_is_refused_and_left_alone(load, tmp_path):
    model = load("llama")
    (tmp_path / "mine").mkdir()
    with pytest.raises(StorageError, match="exists already"):
        ln.bake(model, ln.Scale(neurons(model), 2.0)).save(tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_weights_that_compute_something_else_never_appear(load, tmp_path, monkeypatch):
    model = load("llama")
    baked = ln.bake(model, ln.Scale(neurons(model), 2.0))
    wrong = folding.Affine.of_inputs
    monkeypatch.setattr(folding.Affine, "of_inputs", lambda units, linear: wrong(units, wrong(units, linear)))
    with pytest.raises(ModelError, match=r"they differ by [\d.]+, and rounding explains [\d.e-]+, so nothing was"):
        baked.save(tmp_path / "wrong")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_save_leaves_nothing(load, tmp_path, monkeypatch):
    model = load("llama")

    def interrupted(*arguments):
        assert list(tmp_path.glob(".baked.partial/baked/*"))
        raise KeyboardInterrupt

    monkeypatch.setattr(Baked, "_reloaded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ln.bake(model, ln.Scale(neurons(model), 2.0)).save(tmp_path / "baked")
    assert not list(tmp_path.iterdir())


def test_a_killed_save_leaves_no_folder_and_the_next_one_cleans_up(tmp_path):
    folder = save_tiny(tmp_path / "llama", "llama")
    program = f"""
        import time, langneurons as ln
        from langneurons.baking.baked import Baked
        model = ln.load_model({str(folder)!r})
        patch = ln.Scale(ln.NeuronSet.of({{"hi": [(0, 1)]}}, (2, 48), "act"), 2.0)
        Baked._reloaded = lambda *arguments: (print("written", flush=True), time.sleep(60))
        ln.bake(model, patch).save({str(tmp_path / "baked")!r})
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        model = ln.load_model(folder)
        baked = ln.bake(model, ln.Scale(neurons(model), 2.0))
        with pytest.raises(StorageError, match="Another process is writing"):
            baked.save(tmp_path / "baked")
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "baked").exists()
    orphan = tmp_path / ".baked.partial" / "baked"
    assert (orphan / "model.safetensors").exists()
    baked.save(tmp_path / "baked")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baked", "llama"]
