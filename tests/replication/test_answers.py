import pandas as pd
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from langneurons.errors import TaskError
from langneurons.replication.protocols import kept_by_length, token_id_scores

WORDS = ["<pad>", "</s>", "<unk>", "the", "red", "Red", "house", "."]


def tokenizer(eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token=eos, unk_token="<unk>")


def ids(words: str) -> list[int]:
    return [WORDS.index(word) for word in words.split()]


@pytest.mark.parametrize(
    ("gold", "generated", "exact_match", "f1"),
    [
        ("red house", "red house </s>", 1, 1),
        ("red house", "red house", 0, 4 / 5),  # no end: 2 shared, 2 given, 3 gold
        ("red house", "Red house </s>", 0, 2 / 3),  # nothing is normalised: 2 shared of 3 and 3
        ("red house", "the red house </s>", 0, 6 / 7),  # nor are articles: 3 shared, 4 given, 3 gold
        ("red house", "house red </s>", 0, 1),  # a multiset has no order
        ("red house", "red red </s>", 0, 2 / 3),  # red counts once: 2 shared of 3 and 3
        ("red house", "</s>", 0, 1 / 2),  # an empty answer is half right: 1 shared, 1 given, 3 gold
        ("red house", "", 0, 0),
        ("red house", "the", 0, 0),
        (" red house\n", "red house </s>", 1, 1),  # gold answers are stripped
    ],
)
def test_scores_equal_what_was_worked_out_by_hand(gold, generated, exact_match, f1):
    rows = pd.DataFrame({"item": ["a"], "gold": [gold], "generated": [ids(generated)]})
    scores = token_id_scores(rows, tokenizer())
    assert scores.loc[0, "exact_match"] == exact_match
    assert scores.loc[0, "f1"] == pytest.approx(f1)


def test_items_keep_their_names_and_order():
    rows = pd.DataFrame({"item": ["b", "a"], "gold": ["red", "the"], "generated": [[3, 1], [3, 1]]}, index=[7, 3])
    scores = token_id_scores(rows, tokenizer())
    assert scores.to_dict("list") == {"item": ["b", "a"], "exact_match": [0.0, 1.0], "f1": [0.5, 1.0]}


def test_what_is_missing_is_said():
    rows = pd.DataFrame({"item": ["a"], "gold": ["red"], "generated": [[4, 1]]})
    with pytest.raises(TaskError, match="generated"):
        token_id_scores(rows.drop(columns="generated"), tokenizer())
    with pytest.raises(TaskError, match="end-of-sequence"):
        token_id_scores(rows, tokenizer(eos=None))


def test_the_filter_drops_prompts_of_511_tokens_and_more():
    assert kept_by_length(pd.Series([1, 510, 511, 600]).to_numpy()).tolist() == [True, True, False, False]
    assert kept_by_length([3, 4], limit=4).tolist() == [True, False]
