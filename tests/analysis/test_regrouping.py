from collections import Counter

import numpy as np
import pytest

import langneurons as ln
from langneurons.analysis.validity import pseudo_languages, shuffled_languages
from langneurons.errors import CorpusError, LanguageError
from tests.corpora.conftest import word_tokenizer


@pytest.fixture(scope="module")
def corpus():
    return ln.load_corpus(
        {language: [f"{language} {i} " + "x" * (i % 7) for i in range(60)] for language in ("en", "fr")}
    )


def every_document(corpus):
    return Counter(text for language in corpus.languages for text in corpus[language])


def test_shuffling_deals_every_document_once_and_mixes_the_languages(corpus):
    dealt = shuffled_languages(corpus, seed=1)
    assert dealt.languages == ("deal-1", "deal-2")
    assert every_document(dealt) == every_document(corpus)
    for label in dealt.languages:
        assert len(dealt[label]) == 60
        assert 15 < sum(text.startswith("en") for text in dealt[label]) < 45


def test_deals_repeat_with_the_seed_and_differ_between_seeds(corpus):
    assert shuffled_languages(corpus, seed=1) == shuffled_languages(corpus, seed=1)
    assert shuffled_languages(corpus, seed=1) != shuffled_languages(corpus, seed=2)


def test_pseudo_languages_by_source_keep_the_order_of_the_corpus(corpus):
    parts = pseudo_languages(corpus, "fr", 3)
    assert parts.languages == ("fr-1", "fr-2", "fr-3")
    assert [text for label in parts.languages for text in parts[label]] == list(corpus["fr"])
    sizes = parts.sizes()["characters"]
    assert sizes.max() - sizes.min() <= 20


def test_pseudo_languages_by_topic_find_the_topics():
    random = np.random.default_rng(0)
    topics = ("abcdefg", "hijklmn", "opqrstu")
    texts = [" ".join(random.choice(list(topics[i % 3]), 12)) for i in range(90)]
    corpus = ln.load_corpus({"en": texts})
    parts = pseudo_languages(corpus, "en", 3, by="topic", tokenizer=word_tokenizer("bos"), seed=0)
    for label in parts.languages:
        found = Counter(next(i for i, topic in enumerate(topics) if text[0] in topic) for text in parts[label])
        assert found.most_common(1)[0][1] / sum(found.values()) > 0.8
    assert pseudo_languages(corpus, "en", 3, by="topic", tokenizer=word_tokenizer("bos"), seed=0) == parts
    sizes = parts.sizes()["characters"]
    assert sizes.max() / sizes.min() < 1.2


def test_given_groups_are_kept(corpus):
    parts = pseudo_languages(corpus, "en", 2, by=[0, 1] * 30)
    assert list(parts["en-2"]) == list(corpus["en"][1::2])


def test_bad_input_is_one_sentence(corpus):
    with pytest.raises(LanguageError, match="Unknown language 'de'"):
        pseudo_languages(corpus, "de", 2)
    with pytest.raises(CorpusError, match="Unknown grouping 'sauce': did you mean 'source'"):
        pseudo_languages(corpus, "en", 2, by="sauce")
    with pytest.raises(CorpusError, match="every part from 0 to 2 needs a document"):
        pseudo_languages(corpus, "en", 3, by=[0, 1] * 30)
    with pytest.raises(CorpusError, match="give the model's tokenizer"):
        pseudo_languages(corpus, "en", 3, by="topic")
