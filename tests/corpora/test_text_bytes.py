import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from langneurons.corpora import load_corpus, pack
from langneurons.corpora.packing import stream_bytes, token_bytes
from langneurons.errors import LanguageError, StaleArtefactError
from tests.corpora.conftest import word_tokenizer

SAMPLE = ["The boy drinks water.", "लड़का पानी पीता है।", "男孩喝水。", "بچہ پانی پیتا ہے۔", "Ein schönes Mädchen"]


def trained(model, trainer, pre_tokenizer, normalizer=None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(SAMPLE, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


SPECIAL = ["</s>", "<unk>"]
BYTES = pre_tokenizers.ByteLevel.alphabet()
TOKENIZERS = {
    "byte-level BPE": trained(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=BYTES, show_progress=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ),
    "normalised unigram": trained(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
        pre_tokenizers.Metaspace(),
        normalizers.NFKC(),
    ),
    "words": word_tokenizer("eos"),
}
texts = st.one_of(
    st.text(max_size=40), st.lists(st.sampled_from([*SAMPLE, "  ", "\n", "é", "👍🏽", "a b"])).map("".join)
)


def naive_bytes(text: str, offsets) -> list[int]:
    """Every character, one after the other, to the first token that ends after it."""
    counts = [0] * len(offsets)
    for place, character in enumerate(text):
        owner = next((token for token, (_, end) in enumerate(offsets) if end > place), len(offsets) - 1)
        counts[owner] += len(character.encode())
    return counts


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None, max_examples=80)
@given(text=texts)
def test_every_byte_of_a_text_belongs_to_one_token(kind, text):
    offsets = TOKENIZERS[kind](text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    counts = token_bytes(text, offsets)
    assert len(counts) == len(offsets)
    if offsets:
        assert counts.tolist() == naive_bytes(text, offsets)
        assert counts.sum() == len(text.encode())


def test_a_character_split_over_tokens_goes_to_the_first_of_them():
    assert token_bytes("a👍b", [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]).tolist() == [1, 4, 0, 0, 0, 1]


def test_skipped_white_space_goes_to_the_next_token_and_a_tail_to_the_last():
    assert token_bytes("  né  le \n", [(2, 4), (6, 8)]).tolist() == [2 + 3, 2 + 2 + 2]


def test_a_text_without_tokens_has_no_bytes_to_share_out():
    assert token_bytes(" ", []).tolist() == []


@pytest.mark.parametrize("kind", ["bos and eos", "bos", "eos", "neither"])
def test_the_bytes_of_a_stream_are_those_of_its_documents_and_separators_have_none(tmp_path, kind):
    tokenizer = word_tokenizer(*kind.replace("neither", "").replace(" and ", " ").split())
    documents = ["a b  c", "é ü d", " e "]
    corpus = load_corpus({"xx": documents})
    packed = pack(corpus, tokenizer, 16, tmp_path)
    counts = stream_bytes(packed, corpus, tokenizer, "xx")
    separator = packed.format.separator is not None
    ends = np.cumsum(packed.lengths("xx") + separator)
    assert [int(part.sum()) for part in np.split(counts, ends[:-1])] == [len(text.encode()) for text in documents]
    assert not separator or not counts[ends - 1].any()


def test_bytes_of_another_corpus_or_language_are_refused(tmp_path):
    tokenizer = word_tokenizer("eos")
    packed = pack(load_corpus({"xx": ["a b c", "d e"]}), tokenizer, 16, tmp_path)
    with pytest.raises(StaleArtefactError, match="not those of the corpus"):
        stream_bytes(packed, load_corpus({"xx": ["a b", "d e"]}), tokenizer, "xx")
    with pytest.raises(LanguageError, match="Possible: xx"):
        stream_bytes(packed, load_corpus({"yy": ["a b"]}), tokenizer, "yy")
