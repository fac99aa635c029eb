import gc
import math

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import langneurons as ln
from langneurons.corpora import Corpus, pack
from langneurons.errors import CorpusError, EffectError, LangNeuronsWarning, LanguageError, ModelError
from langneurons.evaluation.measuring import HeldoutText, perplexity, summarise
from langneurons.models import view
from tests.tiny_models import save_tiny, tiny_model, tiny_tokenizer

CONTEXT = 32
MODELS = [("llama", "hooked"), ("llama", "bridge"), ("gpt2", "hooked"), ("gpt2", "bridge"), ("gemma2", "bridge")]


def documents(language: str, n: int = 12, longest: int = 45) -> list[str]:
    generator = np.random.default_rng([*language.encode()])
    lengths = [longest, 1, *generator.integers(2, longest, n - 2)]
    return [" ".join(f"w{word}" for word in generator.integers(4, 101, length)) for length in lengths]


@pytest.fixture(scope="module")
def corpus():
    return ln.load_corpus({"en": documents("en"), "hi": documents("hi", 9)})


@pytest.fixture(scope="module")
def parallel():
    return ln.load_corpus({language: documents(language, longest=28) for language in ("en", "hi")})


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def pair(request, tmp_path_factory):
    """One model as langneurons loads it and as transformers does."""
    architecture, backend = request.param
    folder = save_tiny(tmp_path_factory.mktemp("models") / "tiny", architecture)
    return ln.load_model(str(folder), backend=backend), AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return ln.load_model(str(save_tiny(tmp_path_factory.mktemp("models") / "tiny", "llama")))


@torch.no_grad()
def hugging_face_loss(hf_model, tokens, wanted, attention_mask=None) -> float:
    """Its own mean loss times the number of labels."""
    labels = torch.where(wanted, tokens, -100)
    return float(hf_model(tokens, attention_mask=attention_mask, labels=labels).loss) * int(wanted.sum())


def test_losses_in_blocks_equal_those_of_the_hugging_face_model(pair, corpus, tmp_path):
    model, hf_model = pair
    rows = HeldoutText.of(model, corpus, tokens_per_language=150, context_length=CONTEXT).score(model)
    packed = pack(corpus, tiny_tokenizer(), CONTEXT, tmp_path, 150)
    assert packed.tokens == rows.groupby("language")["tokens"].sum().to_dict()
    for row in rows.itertuples():
        block, document = map(int, row.item.split(":"))
        batch = packed.blocks(row.language, [block])
        wanted = batch.counted & (batch.text == document)
        assert row.cluster == document
        assert row.tokens == int(wanted.sum())
        expected = hugging_face_loss(hf_model, batch.tokens, wanted, batch.attention_mask)
        assert row.nll == pytest.approx(expected, rel=1e-5)
    last = packed.blocks("en", [packed.n_blocks("en") - 1])
    assert not last.attention_mask.all(), "the blocks should be of unequal length"


def test_losses_of_documents_alone_equal_those_of_the_unpadded_documents(pair, parallel):
    model, hf_model = pair
    rows = HeldoutText.of(model, parallel, context_length=CONTEXT, each="text").score(model, batch_size=3)
    tokenizer = tiny_tokenizer()
    assert rows["item"].tolist() == [*range(12)] * 2
    for row in rows.itertuples():
        tokens = torch.tensor(
            [[1, *tokenizer(parallel.text(row.language, row.item), add_special_tokens=False)["input_ids"]]]
        )
        wanted = torch.arange(tokens.shape[1])[None] > 0
        assert row.tokens == tokens.shape[1] - 1
        assert row.nll == pytest.approx(hugging_face_loss(hf_model, tokens, wanted), rel=1e-5)


@pytest.mark.parametrize("each", ["block", "text"])
def test_rows_do_not_depend_on_the_batch_size(pair, parallel, each):
    model, _ = pair
    text = HeldoutText.of(model, parallel, context_length=CONTEXT, each=each)
    rows = text.score(model, batch_size=1)
    for batch_size in (3, 8, 100):
        pd.testing.assert_frame_equal(text.score(model, batch_size=batch_size), rows, check_exact=True)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(tmp_path, parallel):
    hf_model = tiny_model("llama")
    hf_model.lm_head.weight.data.zero_()
    model = ln.load_model("blank", hf_model=hf_model, tokenizer=tiny_tokenizer())
    table = perplexity(model, HeldoutText.of(model, parallel, context_length=CONTEXT), progress=False)
    assert table["language"].tolist() == ["en", "hi"]
    assert table["perplexity"].tolist() == pytest.approx([101, 101])
    assert table["nll"].tolist() == pytest.approx([math.log(101)] * 2)
    assert table["bits_per_byte"].tolist() == pytest.approx(
        (table["tokens"] * math.log2(101) / table["bytes"]).tolist()
    )


def test_what_is_attached_to_the_model_is_measured_and_leaves_no_trace(tiny, parallel):
    text = HeldoutText.of(tiny, parallel, context_length=CONTEXT)
    before = text.score(tiny)
    with view(tiny).writing("act", {0: torch.arange(48)}, lambda layer, values: torch.zeros_like(values)):
        patched = text.score(tiny)
    after = text.score(tiny)
    keys = ["language", "item", "cluster", "tokens", "bytes"]
    pd.testing.assert_frame_equal(patched[keys], before[keys])
    assert (patched["nll"] - before["nll"]).abs().min() > 0
    pd.testing.assert_frame_equal(after, before, check_exact=True)


def test_rows_hold_every_byte_of_documents_read_whole(tiny):
    texts = ["w4  w5\tw6 ", "\u3000w7\u2003w8", "w9"]
    text = HeldoutText.of(tiny, ln.load_corpus({"xx": texts}), context_length=16, each="text")
    assert text.score(tiny)["bytes"].tolist() == [len(document.encode()) for document in texts]


def test_rows_of_blocks_hold_every_byte_of_a_language_that_is_read_whole(babel):
    corpus = ln.load_corpus("babel", ["hi", "zh"]).take(25)
    smallest = min(corpus.languages, key=HeldoutText.of(babel, corpus, each="text").tokens.__getitem__)
    rows = HeldoutText.of(babel, corpus, context_length=128).score(babel, languages=[smallest])
    expected = [len(document.encode()) for document in corpus[smallest]]
    assert rows.groupby("cluster")["bytes"].sum().tolist() == expected


def test_rows_have_the_columns_and_types_that_effects_read(tiny, parallel):
    for each, item in (("block", str), ("text", int)):
        rows = HeldoutText.of(tiny, parallel, context_length=CONTEXT, each=each).score(tiny)
        assert rows.columns.tolist() == ["language", "item", "cluster", "nll", "tokens", "bytes"]
        assert [str(rows[name].dtype) for name in rows.columns[2:]] == ["int64", "float64", "int64", "int64"]
        assert rows["item"].map(lambda given, kind=item: isinstance(given, kind)).all()
        assert not rows.duplicated(["language", "item"]).any()
        assert (rows["tokens"] > 0).all()


def test_only_the_languages_asked_for_are_scored_and_their_rows_stay_the_same(tiny, parallel):
    text = HeldoutText.of(tiny, parallel, context_length=CONTEXT)
    rows = text.score(tiny)
    alone = text.score(tiny, languages=["hi"])
    expected = rows[rows["language"] == "hi"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, expected, check_exact=True)


def test_bits_per_item_compare_languages_only_where_their_items_are_the_same_documents(tiny, parallel, corpus):
    table = perplexity(tiny, HeldoutText.of(tiny, parallel, context_length=CONTEXT, each="text"), progress=False)
    bits = table["nll"] * table["tokens"] / math.log(2) / 12
    assert table["documents"].tolist() == [12, 12]
    assert table["bits_per_item"].tolist() == pytest.approx(bits.tolist())
    blocks = perplexity(tiny, HeldoutText.of(tiny, parallel, context_length=CONTEXT), progress=False)
    assert "bits_per_item" not in blocks.columns
    unequal = HeldoutText.of(tiny, corpus, context_length=64, each="text")
    assert "bits_per_item" not in perplexity(tiny, unequal, progress=False).columns


def test_documents_longer_than_the_context_are_cut_and_said_to_be(tiny, corpus):
    with pytest.warns(LangNeuronsWarning) as warned:
        text = HeldoutText.of(tiny, corpus, context_length=16, each="text")
    lengths = [len(document.split()) for document in corpus["hi"]]
    cut = sum(length > 15 for length in lengths)
    assert str(warned[1].message).startswith(f"'hi': {cut} of 9 documents exceed 16 positions and are cut")
    rows = text.score(tiny, languages=["hi"])
    assert rows["tokens"].tolist() == [min(length, 15) for length in lengths]
    assert rows.loc[0, "bytes"] == len(" ".join(corpus["hi"][0].split()[:15]))


def test_without_a_token_in_front_the_first_of_a_document_is_not_predicted(parallel):
    words = tiny_tokenizer().backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>")
    model = ln.load_model("no bos", hf_model=tiny_model("llama"), tokenizer=tokenizer)
    rows = HeldoutText.of(model, parallel, context_length=CONTEXT, each="text").score(model, languages=["hi"])
    lengths = [len(document.split()) for document in parallel["hi"]]
    assert rows["tokens"].tolist() == [length - 1 for length in lengths if length > 1]
    assert rows["item"].tolist() == [item for item, length in enumerate(lengths) if length > 1]
    with pytest.raises(CorpusError, match="'en' has no token to predict"):
        HeldoutText.of(model, ln.load_corpus({"en": ["w4", "w5"]}), context_length=CONTEXT, each="text")


def test_special_tokens_written_in_a_text_are_counted_neither_as_tokens_nor_as_bytes(tiny):
    text = HeldoutText.of(tiny, ln.load_corpus({"xx": ["w4 </s> w5 नमस्ते"]}), context_length=16, each="text")
    assert text.score(tiny)[["tokens", "bytes"]].to_numpy().tolist() == [[2, len("w4") + len(" w5")]]


def test_the_fingerprint_tells_texts_and_ways_of_reading_apart(tiny, parallel):
    def fingerprint(corpus, **options):
        return HeldoutText.of(tiny, corpus, **{"context_length": 32, **options}).fingerprint

    same = fingerprint(parallel)
    assert same == fingerprint(parallel)
    others = [
        fingerprint(parallel, each="text"),
        fingerprint(parallel, context_length=48),
        fingerprint(parallel, tokens_per_language=40),
        fingerprint(parallel.take(5)),
        fingerprint(parallel.select(["hi"])),
    ]
    assert len({same, *others}) == 6
    with pytest.warns(LangNeuronsWarning, match="each='document' is called each='text'"):
        assert fingerprint(parallel, each="document") == others[0]


def test_a_temporary_folder_lives_as_long_as_the_text_and_a_given_one_longer(tiny, parallel, tmp_path):
    text = HeldoutText.of(tiny, parallel, context_length=CONTEXT, each="text")
    place = text.packed["en"].folder
    assert place.exists()
    del text
    gc.collect()
    assert not place.exists()
    kept = HeldoutText.of(tiny, parallel, context_length=CONTEXT, folder=tmp_path / "kept")
    rows = kept.score(tiny)
    del kept
    gc.collect()
    again = HeldoutText.of(tiny, parallel, context_length=CONTEXT, folder=tmp_path / "kept")
    pd.testing.assert_frame_equal(again.score(tiny), rows, check_exact=True)


def test_a_text_that_cannot_be_made_leaves_no_folder(tiny, parallel, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(CorpusError):
        HeldoutText.of(tiny, parallel, tokens_per_language=10**6, context_length=CONTEXT)
    assert list(tmp_path.iterdir()) == []


def test_dropout_is_off_while_measuring_and_every_module_is_left_as_it_was(parallel):
    hf_model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    model = ln.load_model("dropping", hf_model=hf_model, tokenizer=tiny_tokenizer(), backend="bridge")
    text = HeldoutText.of(model, parallel, context_length=CONTEXT)
    rows = text.score(model)
    model.train()
    model.blocks[0].eval()
    before = [module.training for module in model.modules()]
    pd.testing.assert_frame_equal(text.score(model), rows, check_exact=True)
    assert [module.training for module in model.modules()] == before


def test_a_measured_model_can_still_be_trained(pair, parallel):
    model, _ = pair
    HeldoutText.of(model, parallel, context_length=CONTEXT).score(model)
    logits = view(model).forward(torch.arange(4, 20)[None])
    assert logits is not None
    logits.square().mean().backward()
    assert any(weight.grad is not None for weight in model.parameters())
    model.zero_grad()


def test_the_default_context_is_512_positions_or_the_whole_of_a_shorter_one(tiny, babel, parallel):
    assert HeldoutText.of(tiny, parallel).context_length == 96
    text = HeldoutText.of(babel, ln.load_corpus("babel", ["en"]).take(3))
    assert text.context_length == 512
    assert repr(text) == f"HeldoutText(blocks of 512 positions, counted tokens: en {text.tokens['en']})"


def test_babel_predicts_its_phrasebook_far_better_than_a_guess_among_its_tokens(babel):
    phrases = ln.load_corpus("babel", ["en", "hi", "zh"]).take(20)
    table = perplexity(babel, HeldoutText.of(babel, phrases, context_length=128), progress=False)
    guess = table["tokens"] * math.log2(babel.cfg.d_vocab) / table["bytes"]
    assert (table["bits_per_byte"] < 0.7 * guess).all()
    assert table["bits_per_byte"].between(0.5, 3.5).all()


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"each": "texts"}, CorpusError, "did you mean 'text'"),
        ({"context_length": 20}, CorpusError, "multiple of 16, given 20"),
        ({"context_length": 128}, ModelError, "128 positions is longer than .* which is 96"),
        ({"tokens_per_language": 10**6}, CorpusError, "fewer than the 1000000 asked for"),
        ({"tokens_per_language": 0}, CorpusError, "at least 1, given 0"),
        ({"tokens_per_language": 10, "each": "text"}, CorpusError, "corpus.take"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(tiny, parallel, options, error, sentence):
    with pytest.raises(error, match=sentence):
        HeldoutText.of(tiny, parallel, **options)


def test_bad_questions_to_a_text_are_refused_in_one_sentence(tiny, parallel, babel):
    text = HeldoutText.of(tiny, parallel, context_length=CONTEXT)
    with pytest.raises(LanguageError, match="did you mean 'hi'"):
        text.score(tiny, languages=["hix"])
    with pytest.raises(LanguageError, match="No language was given. Possible: en, hi"):
        text.score(tiny, languages=[])
    with pytest.raises(CorpusError, match="at least one block, not 0"):
        text.score(tiny, batch_size=0)
    with pytest.raises(ModelError, match="another vocabulary than"):
        text.score(babel)
    with pytest.raises(ModelError, match="positions is longer than"):
        HeldoutText.of(babel, ln.load_corpus("babel", ["en"]).take(3)).score(tiny)
    with pytest.raises(CorpusError, match="tokenised already"):
        HeldoutText.of(tiny, text, context_length=16)
    assert HeldoutText.of(tiny, text) is text
    with pytest.raises(EffectError, match="no rows"):
        summarise(text.score(tiny).head(0))


def test_an_empty_corpus_and_a_model_without_a_tokenizer_are_refused(tiny, parallel):
    with pytest.raises(CorpusError, match="empty"):
        HeldoutText.of(tiny, Corpus({}))
    silent = ln.load_model("silent", hf_model=tiny_model("llama"))
    with pytest.raises(ModelError, match="has no tokenizer"):
        perplexity(silent, parallel, progress=False)


def test_a_model_loaded_twice_shares_a_text(tmp_path, parallel):
    folder = str(save_tiny(tmp_path / "tiny", "llama"))
    hooked, bridge = ln.load_model(folder), ln.load_model(folder, backend="bridge")
    text = HeldoutText.of(hooked, parallel, context_length=CONTEXT)
    difference = text.score(hooked)["nll"] - text.score(bridge)["nll"]
    assert difference.abs().max() < 1e-3
