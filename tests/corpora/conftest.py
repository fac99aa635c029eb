from pathlib import Path

import datasets
import pytest
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True, scope="session")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("datasets")
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
        yield folder


@pytest.fixture(scope="session")
def text_folder(shared_data) -> Path:
    return shared_data("text")


def word_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """One token a letter between spaces; `special` of "bos", "eos", "pad"."""
    words = [*LETTERS, "<unk>", "<bos>", "<eos>", "<pad>"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {f"{name}_token": f"<{name}>" for name in special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, add_bos_token="bos" in special, **named)


TOKENIZERS = {
    "bos and eos": word_tokenizer("bos", "eos", "pad"),
    "bos": word_tokenizer("bos"),
    "eos": word_tokenizer("eos"),
    "neither": word_tokenizer(),
}
words = st.sampled_from([*LETTERS, "<eos>", "<bos>", "unheard"])
