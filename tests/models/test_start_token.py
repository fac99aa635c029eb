"""The token in front of every text is the one that the tokenizer itself writes, wherever texts become tokens."""

import pytest
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import langneurons as ln
from langneurons.corpora import pack
from langneurons.models import load_model, start_token, view
from langneurons.tasks.batching import front
from langneurons.tasks.completing import prompt_ids
from tests.tiny_models import tiny_model

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{index}" for index in range(4, 101))]
_LLAMA = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
_SEPARATED = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)])
KINDS = {
    "bloom": (processors.ByteLevel(trim_offsets=False), {}, None),
    "gpt2": (processors.ByteLevel(trim_offsets=False), {"bos_token": "</s>"}, None),
    "none": (None, {}, None),
    "phi-3": (None, {"add_bos_token": False}, None),
    "ends only": (_SEPARATED, {}, None),
    "llama": (_LLAMA, {}, 1),
    "declared": (None, {"add_bos_token": True}, 1),
    "qwen": (processors.ByteLevel(trim_offsets=False), {"bos_token": None}, None),
}


def tokenizer_of(kind):
    post_processor, options, _ = KINDS[kind]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", **options}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_begins_with_what_the_tokenizer_writes(kind, tmp_path):
    expected = KINDS[kind][2]
    fronts = [] if expected is None else [expected]
    tokenizer_of(kind).save_pretrained(tmp_path / "saved")
    for tokenizer in (tokenizer_of(kind), AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert start_token(tokenizer) == expected
        assert prompt_ids(tokenizer, "w5 w6") == [*fronts, 5, 6]
    assert tokenizer("w5 w6")["input_ids"][: len(fronts) + 2] == [*fronts, 5, 6]


@pytest.mark.parametrize("kind", ["bloom", "llama"])
def test_packing_scoring_and_looking_begin_texts_alike(kind, tmp_path):
    tokenizer, expected = tokenizer_of(kind), KINDS[kind][2]
    fronts = [] if expected is None else [expected]
    corpus = ln.load_corpus({"en": ["w5 w6 w7 w8 " * 20]})
    packed = pack(corpus, tokenizer, 16, tmp_path)
    assert packed.format.bos == expected
    assert packed.texts("en", [0]).tokens[0, :3].tolist() == [*fronts, 5, 6, 7][:3]
    model = load_model("tiny", hf_model=tiny_model("bloom"), tokenizer=tokenizer)
    assert front(view(model)) == fronts
    texts = []
    with view(model).reading({"pre": lambda layer, values: texts.append(values.shape[1]) if not layer else None}):
        ln.activations(model, "w5 w6 w7", ln.NeuronSet.of({"en": [(0, 0)]}, (2, 128), "act")["en"])
    assert texts == [len(fronts) + 3]


def test_the_embedded_model_reads_the_start_it_was_trained_with(babel):
    tokenizer = view(babel).tokenizer
    assert start_token(tokenizer) == tokenizer.bos_token_id == 1
    assert tokenizer("Hello").input_ids[0] != 1  # its tokenizer leaves that to others
