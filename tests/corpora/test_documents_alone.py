import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langneurons.corpora import load_corpus, pack
from langneurons.errors import CorpusError, LanguageError
from tests.corpora.conftest import LETTERS, TOKENIZERS, words

documents = st.lists(st.lists(words, min_size=1, max_size=45).map(" ".join), min_size=1, max_size=8)


def naive_document(text, ordinal, tokenizer, context_length):
    """(token, counted, document, attended) of every position of one document, unpadded."""
    bos, special = tokenizer.bos_token_id, set(tokenizer.all_special_ids)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    row = [] if bos is None else [(bos, False, -1, 1)]
    for token in ids:
        counted = token not in special and bool(row)
        row.append((token, counted, ordinal if counted else -1, 1))
    return row[:context_length]


@settings(deadline=None, max_examples=60)
@given(documents, st.sampled_from(sorted(TOKENIZERS)), st.sampled_from([16, 32, 64]))
def test_documents_read_alone_equal_a_naive_reading(texts, kind, context_length):
    tokenizer = TOKENIZERS[kind]
    with tempfile.TemporaryDirectory() as folder:
        try:
            packed = pack(load_corpus({"xx": texts}), tokenizer, context_length, folder)
        except CorpusError:
            return  # nothing but special tokens
        ordinals = np.arange(len(texts))[::-1]
        blocks = packed.texts("xx", ordinals)
        padded = blocks.tokens.shape[1]
        parts = (blocks.tokens, blocks.counted, blocks.text, blocks.attention_mask)
        found = [list(zip(*rows, strict=True)) for rows in zip(*(part.tolist() for part in parts), strict=True)]
        expected = [naive_document(texts[ordinal], int(ordinal), tokenizer, context_length) for ordinal in ordinals]
        padding = (packed.format.padding, False, -1, 0)
        assert found == [row + [padding] * (padded - len(row)) for row in expected]
        assert padded == min(-(-max(max(map(len, expected)), 1) // 16) * 16, context_length)
        assert packed.lengths("xx").tolist() == [
            len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
        ]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_places_lead_back_to_the_stream_from_blocks_and_from_documents(tmp_path, kind):
    texts = [" ".join(LETTERS), "a b c", " ".join(LETTERS[:10])]
    packed = pack(load_corpus({"xx": texts}), TOKENIZERS[kind], 16, tmp_path)
    stream = np.fromfile(tmp_path / "xx.tokens", "<u4")
    for blocks in (packed.blocks("xx", range(packed.n_blocks("xx"))), packed.texts("xx", [2, 0, 1])):
        inside = blocks.place >= 0
        assert (blocks.tokens[inside].numpy() == stream[blocks.place[inside].numpy()]).all()
        front = blocks.place[:, :1] * 0 if packed.format.bos is not None else blocks.place[:, :0]
        assert (inside.sum(1) + front.shape[1]).tolist() == blocks.attention_mask.sum(1).tolist()
        assert (blocks.place[~blocks.attention_mask.bool()] == -1).all()


def test_documents_that_do_not_exist_are_refused(tmp_path):
    packed = pack(load_corpus({"xx": ["a b", "c d"]}), TOKENIZERS["eos"], 16, tmp_path)
    for wrong in ([2], [-1], []):
        with pytest.raises(CorpusError, match="packed texts 0 to 1"):
            packed.texts("xx", wrong)
    with pytest.raises(LanguageError, match="Possible: xx"):
        packed.texts("yy", [0])
    with pytest.raises(LanguageError, match="Possible: xx"):
        packed.lengths("yy")
