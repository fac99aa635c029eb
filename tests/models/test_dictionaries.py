"""Features of a dictionary are read and written like neurons, and what it cannot reconstruct stays in the model."""

import pytest
import torch

from langneurons.errors import HookSiteError
from langneurons.models import SITES, Dictionary, add_dictionary, remove_dictionary, view
from langneurons.models.dictionaries import SparseDictionary, SparseDictionaryConfig
from langneurons.models.feature_sites import hook_point
from langneurons.models.sites import attached
from tests.backends import unfused
from tests.models.dictionaries import HeadsApart, NormalisingDictionary, RandomDictionary, placed
from tests.training.lora_models import fresh

TOKENS = torch.randint(4, 101, (2, 12), generator=torch.Generator().manual_seed(3))
PAIRS = [("llama", "hooked"), ("llama", "bridge"), ("opt", "hooked"), ("opt", "bridge"), ("gemma2", "bridge")]
PLACES = [
    ("resid_pre", None),
    ("resid_post", None),
    ("attn_out", None),
    ("mlp_out", None),
    ("mlp_out", "mlp_input"),
    ("mlp_out", "ln2.hook_normalized"),
    ("attn.hook_z", None),
    ("mlp.hook_post", None),
]
MODELS = {}


@pytest.fixture(params=PAIRS, ids="-".join)
def model(request):
    yield loaded(*request.param)
    clear(loaded(*request.param))


@pytest.fixture
def llama():
    yield loaded("llama", "auto")
    clear(loaded("llama", "auto"))


def loaded(architecture, backend):
    if (architecture, backend) not in MODELS:
        MODELS[architecture, backend] = fresh(architecture, backend)
    return MODELS[architecture, backend]


def clear(model):
    for name in list(view(model).feature_sites):
        remove_dictionary(model, name)


def width_at(model, at):
    by_head = {"attn.hook_z": 4 * model.cfg.d_head, "mlp.hook_post": view(model).width("post")}
    return by_head.get(at, 32)


def add(model, at="resid_post", reads=None, **options):
    dictionaries = {
        layer: RandomDictionary(width_at(model, at), d_out=width_at(model, at), seed=layer) for layer in (0, 1)
    }
    return dictionaries, add_dictionary(model, dictionaries, at=at, reads=reads, **options)


def everything(site):
    return {row: torch.arange(site.shape[1]) for row in range(site.shape[0])}


@torch.no_grad()
def logits(model):
    return view(model).forward(TOKENS)


@torch.no_grad()
def features_of(model, name="features"):
    found = {}
    with view(model).reading({name: lambda row, values: found.__setitem__(row, values.clone())}):
        view(model).forward(TOKENS)
    return found


@pytest.mark.parametrize(("at", "reads"), PLACES)
def test_writing_features_back_leaves_logits_bit_equal(model, at, reads):
    with unfused(model):
        plain = logits(model)
        _, site = add(model, at, reads)
        with view(model).writing("features", everything(site), lambda row, current: current):
            written = logits(model)
    assert torch.equal(written, plain)


@pytest.mark.parametrize(("at", "reads"), PLACES)
def test_features_written_add_what_they_stand_for(model, at, reads):
    """By linearity: raising feature 5 by 0.7 adds 0.7 times its decoder row at the hook point."""
    dictionaries, _ = add(model, at, reads)
    plain, decoded = logits(model), 0.7 * dictionaries[1].decoder[5].detach()

    def add_by_hand(values):
        return values + decoded.reshape(values.shape[2:] if values.ndim > 2 else values.shape[1:])

    with view(model).writing("features", {1: torch.tensor([5])}, lambda row, current: current + 0.7):
        changed = logits(model)
    with attached([(hook_point(model.blocks[1], at), add_by_hand)]):
        added = logits(model)
    assert (changed - plain).abs().max() > 1e-3
    torch.testing.assert_close(changed, added, rtol=0, atol=2e-5)


@pytest.mark.hooked
def test_both_backends_agree_on_features_and_on_what_writing_them_does():
    found = {}
    for backend in ("hooked", "bridge"):
        model = loaded("llama", backend)
        for at, reads in PLACES:
            add(model, at, reads)
            features = features_of(model)[1]
            with view(model).writing("features", {0: torch.tensor([3])}, lambda row, current: current + 1):
                found[backend, at, reads] = (features, logits(model))
            remove_dictionary(model)
    for at, reads in PLACES:
        torch.testing.assert_close(found["hooked", at, reads], found["bridge", at, reads], rtol=0, atol=3e-5)


def test_features_are_what_encode_gives_for_the_hook_points_tensor(llama):
    dictionaries, _ = add(llama)
    _, cache = llama.run_with_cache(TOKENS)
    with unfused(llama):
        found = features_of(llama)
    for layer in (0, 1):
        torch.testing.assert_close(found[layer], dictionaries[layer].encode(cache["resid_post", layer]))
        assert torch.equal(view(llama).cached(cache, "features", layer), found[layer])


def test_what_the_mlp_reads_is_what_its_matrices_are_given(model):
    handed = []
    site = add_dictionary(model, {1: RandomDictionary()}, at="mlp_out", reads="mlp_input")
    weights = view(model).projection(1, "gate").matrix()
    pre = {}
    with torch.no_grad(), view(model).reading({"pre": pre.__setitem__}):
        with_hook = site.placed[0].reads.norm.register_forward_hook(lambda _, inputs, out: handed.append(out.clone()))
        view(model).forward(TOKENS)
        with_hook.remove()
    bias = view(model).projection(1, "gate").bias()
    expected = handed[0].reshape(2, 12, -1) @ weights.T + (0 if bias is None else bias)
    torch.testing.assert_close(pre[1], expected, rtol=0, atol=2e-5)


def test_the_layers_of_a_site_are_its_dictionaries(llama):
    site = add_dictionary(llama, {1: RandomDictionary()}, at="resid_post")
    seen = view(llama)
    assert site.layers == (1,)
    assert seen.shape("features") == (1, 64)
    assert list(features_of(llama)) == [0]
    assert "its layer 0 is layer 1 of the model" in repr(site)
    with pytest.raises(HookSiteError, match="no layer 1 at site 'features'"):
        seen.writing("features", {1: torch.tensor([0])}, lambda row, current: current).__enter__()


@pytest.mark.parametrize("at", ["resid_post", "attn.hook_z", "mlp_out"])
def test_a_later_write_starts_from_the_features_written_before(model, at):
    add(model, at)
    seen, values = view(model), {}
    third, fifth = {0: torch.tensor([3])}, {0: torch.tensor([3, 5])}
    with (
        seen.writing("features", third, lambda row, current: torch.full_like(current, 2.0)),
        seen.writing("features", fifth, lambda row, current: current + 1.0),
        seen.reading({"features": lambda row, current: values.__setitem__(row, current.clone())}),
    ):
        logits(model)
    assert torch.equal(values[0][..., 3], torch.full((2, 12), 3.0))


def test_a_dictionary_that_forgets_its_scale_in_decode_can_be_written_twice(llama):
    plain = logits(llama)
    add_dictionary(llama, {0: NormalisingDictionary()}, at="resid_post")
    seen, units = view(llama), {0: torch.tensor([1, 2])}
    with seen.writing("features", units, lambda r, c: c + 1), seen.writing("features", units, lambda r, c: c + 1):
        twice = logits(llama)
    with seen.writing("features", units, lambda row, current: current + 2):
        once = logits(llama)
    with seen.writing("features", units, lambda row, current: current):
        assert torch.equal(logits(llama), plain)
    torch.testing.assert_close(once, twice, rtol=0, atol=2e-5)
    assert (once - plain).abs().max() > 1e-3


def test_heads_are_handed_apart_to_a_dictionary_that_joins_them(llama):
    plain = logits(llama)
    site = add_dictionary(llama, {0: HeadsApart()}, at="attn.hook_z")
    with view(llama).writing("features", everything(site), lambda row, current: current):
        assert torch.equal(logits(llama), plain)
    with view(llama).writing("features", {0: torch.tensor([0])}, lambda row, current: current + 1):
        assert not torch.equal(logits(llama), plain)


def test_gradients_reach_a_change_that_changes_nothing(llama):
    """First-order effects: d loss / d feature equals the slope by finite differences."""
    site = add(llama)[1]
    slopes = {}

    def scaled(row, current):
        slopes[row] = torch.ones_like(current, requires_grad=True)
        return current * slopes[row]

    def loss():
        return view(llama).forward(TOKENS)[..., 7].sum()

    with torch.enable_grad(), view(llama).writing("features", everything(site), scaled):
        loss().backward()
    feature = int(slopes[1].grad.abs().sum((0, 1)).argmax())
    losses = []
    for factor in (0.99, 1.01):
        with (
            torch.no_grad(),
            view(llama).writing("features", {1: torch.tensor([feature])}, lambda r, c, f=factor: c * f),
        ):
            losses.append(float(loss().double()))
    by_difference = (losses[1] - losses[0]) / 0.02
    assert by_difference == pytest.approx(float(slopes[1].grad[..., feature].sum()), rel=0.02)


def test_removing_the_site_leaves_no_trace(llama):
    plain, fingerprint = logits(llama), view(llama).fingerprint
    add(llama)
    assert view(llama).sites == (*SITES, "features")
    assert view(llama).fingerprint == fingerprint
    assert not view(llama).hooked
    with pytest.raises(ZeroDivisionError), view(llama).reading({"features": lambda row, values: 1 / 0}):
        logits(llama)
    assert not view(llama).hooked
    remove_dictionary(llama)
    assert view(llama).sites == SITES
    assert torch.equal(logits(llama), plain)
    with pytest.raises(HookSiteError, match="Unknown site of features 'features'"):
        remove_dictionary(llama)


def test_output_norm_is_how_much_a_feature_adds(llama):
    dictionaries, _ = add(llama)
    expected = torch.stack([dictionaries[layer].decoder.detach().norm(dim=1) for layer in (0, 1)])
    torch.testing.assert_close(view(llama).output_norm("features"), expected)


def test_the_fingerprint_tells_dictionaries_apart_and_is_the_same_for_the_same(llama):
    def fingerprint(dictionary, **options):
        add_dictionary(llama, {0: dictionary}, **{"at": "resid_post", **options})
        found = view(llama).fingerprint_at("features")
        remove_dictionary(llama)
        return found

    first = fingerprint(RandomDictionary())
    assert first == fingerprint(RandomDictionary())
    assert first != view(llama).fingerprint
    fewer, more = (SparseDictionary(SparseDictionaryConfig(32, 64, "topk", k=k)).requires_grad_(False) for k in (4, 5))
    more.load_state_dict(fewer.state_dict())
    others = [RandomDictionary(seed=1), NormalisingDictionary(), fewer, more]
    different = {first, *map(fingerprint, others), fingerprint(RandomDictionary(), at="resid_pre")}
    assert len(different) == 6


def test_a_dictionary_changed_in_place_is_another(llama):
    dictionaries, _ = add(llama)
    before = view(llama).fingerprint_at("features")
    with torch.no_grad():
        dictionaries[0].decoder[0, 0] += 1
    assert view(llama).fingerprint_at("features") != before


@pytest.mark.parametrize("flat", [False, True])
def test_dictionaries_that_know_their_place_need_no_other(llama, flat):
    site = add_dictionary(llama, placed(RandomDictionary(), "blocks.1.hook_resid_post", flat=flat))
    assert (site.at, site.reads, site.layers) == ("resid_post", "resid_post", (1,))
    transcoder = placed(RandomDictionary(), "blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out", flat=flat)
    site = add_dictionary(llama, transcoder, name="transcoder")
    assert (site.at, site.reads, site.layers) == ("mlp_out", "ln2.hook_normalized", (0,))
    both = {layer: placed(RandomDictionary(), f"blocks.{layer}.hook_resid_pre") for layer in (0, 1)}
    assert add_dictionary(llama, both, name="both").at == "resid_pre"


def test_a_transcoder_of_other_input_than_output_width_works(llama):
    plain = logits(llama)
    add_dictionary(llama, {0: RandomDictionary(48, d_out=32)}, at="mlp_out", reads="mlp.hook_post")
    with view(llama).writing("features", {0: torch.tensor([2])}, lambda row, current: current + 1):
        assert not torch.equal(logits(llama), plain)


class Plain:
    """No torch module at all."""

    def encode(self, x):
        return torch.cat([x, -x], dim=-1).relu()

    def decode(self, feature_acts):
        positive, negative = feature_acts.chunk(2, dim=-1)
        return positive - negative


def test_anything_that_encodes_and_decodes_is_a_dictionary(llama):
    assert isinstance(Plain(), Dictionary)
    add_dictionary(llama, {1: Plain()}, at="resid_post")
    torch.testing.assert_close(view(llama).output_norm("features"), torch.ones(1, 64))
    with torch.no_grad(), view(llama).writing("features", {0: torch.arange(64)}, lambda row, current: current * 0):
        silenced = view(llama).forward(TOKENS)
    assert (silenced - silenced[0, 0]).abs().max() < 1e-5  # nothing but the final norm's and unembedding's biases left


class Infinite(RandomDictionary):
    def encode(self, x):
        return super().encode(x) / 0


class Summing(RandomDictionary):
    def encode(self, x):
        return super().encode(x).sum(1)


@pytest.mark.parametrize(
    ("dictionaries", "options", "message"),
    [
        ({0: RandomDictionary(31)}, {"at": "resid_post"}, "cannot take what resid_post gives"),
        ({0: RandomDictionary(32, d_out=31)}, {"at": "resid_post"}, "decodes to 31 values a token.* there are 32"),
        ({0: RandomDictionary(), 1: RandomDictionary(features=65)}, {"at": "resid_post"}, r"these have \[64, 65\]"),
        ({7: RandomDictionary()}, {"at": "resid_post"}, "no layer 7"),
        ({0: RandomDictionary()}, {"at": "resid_pots"}, "no hook point 'resid_pots'"),
        ({0: RandomDictionary()}, {"at": "mlp_input"}, "can only be read"),
        ({0: RandomDictionary()}, {"at": "mlp_out", "reads": "mlp_in"}, "do not both fire at layer 0"),
        ({0: RandomDictionary()}, {}, "does not say where it belongs"),
        (RandomDictionary(), {}, "does not say at which layer"),
        ({1: placed(RandomDictionary(), "blocks.0.hook_resid_post")}, {}, "says that it belongs at blocks.0"),
        ({}, {"at": "resid_post"}, "No dictionary"),
        ({0: object()}, {"at": "resid_post"}, "a object does not"),
        ({"0": RandomDictionary()}, {"at": "resid_post"}, "number of their layer, not by '0'"),
        ({0: Infinite()}, {"at": "resid_post"}, "not finite"),
        ({0: Summing()}, {"at": "resid_post"}, "a tensor of tokens"),
        ({0: RandomDictionary()}, {"at": "resid_post", "name": "act"}, "site 'act' already"),
        ({0: RandomDictionary()}, {"at": "resid_post", "name": "a/b"}, "letters, digits"),
    ],
)
def test_a_dictionary_that_does_not_fit_is_refused_and_leaves_nothing(llama, dictionaries, options, message):
    with pytest.raises(HookSiteError, match=message):
        add_dictionary(llama, dictionaries, **options)
    assert view(llama).sites == SITES
    assert not view(llama).hooked


def test_where_the_bridge_cannot_write_the_residual_it_says_so():
    with pytest.raises(HookSiteError, match="only be read"):
        add_dictionary(loaded("llama", "bridge"), {0: RandomDictionary()}, at="resid_mid")
