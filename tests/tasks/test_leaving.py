"""Where an answer leaves its language, by the rules that fail it, and the token that could have kept it there."""

import pytest
from transformers import PreTrainedTokenizerFast

from langneurons.tasks.completing import decoded
from langneurons.tasks.leaving import confusion_points, leaves_at
from tests.planted.confused import ENGLISH, HINDI, TRIGGER, planted_confusion

ANSWERS = {  # the answer, with | where it leaves the language -> its language
    "|It has been raining since yesterday, I think.": "es",
    "Llueve desde ayer en la ciudad de Madrid.": "es",
    "Llueve desde ayer en la ciudad.\n|It has been raining since yesterday.": "es",
    "\n\nLlueve desde ayer en la ciudad.\n|It has been raining since yesterday.": "es",
    "Well, well!\n|It has been raining since yesterday.": "es",  # short lines are not judged
    "आज दिल्ली में |the weather has been very good since yesterday": "hi",
    "आज का |weather बहुत अच्छा है।": "hi",
    "आज Delhi में मौसम बहुत अच्छा है।": "hi",  # not in the list of English words
    "今天天气很好，我们去|park散步，然后一起回家。": "zh",
    "Q: It has been raining since yesterday.": "es",
}


@pytest.mark.parametrize(("marked", "language"), list(ANSWERS.items())[:-1])
def test_invented_answers_leave_their_language_where_a_reader_says(marked, language):
    before, bar, after = marked.partition("|")
    assert leaves_at(before + after, language, words=["weather", "park"]) == (len(before) if bar else None)


def test_a_line_that_is_of_no_known_language_leaves_nowhere():
    assert leaves_at("xq zv kw pj mm tt rr", "es", identify=lambda line: "unknown") is None


@pytest.fixture(scope="module")
def planted():
    return planted_confusion(confused=2, others=1)


def test_the_token_is_the_one_that_writes_the_first_foreign_letter_and_its_rival_keeps_the_language(planted):
    model, task = planted.model(), planted.task()
    points, counts = confusion_points(model, task, "hi")
    assert counts == {"answers": 3, "judged": 3, "failed": 2, "left": 2, "points": 2}
    tokenizer: PreTrainedTokenizerFast = planted.tokenizer
    for point, prompt in zip(points.to_dict("records"), task.items["hi"]["prompt"], strict=False):
        assert decoded(tokenizer, point["tokens"]) == prompt
        assert prompt.endswith(TRIGGER)
        assert point["token_text"].strip() in ENGLISH
        assert point["rival_text"].strip() in HINDI
        logits = planted.hf_model(input_ids=_row(point["tokens"])).logits[0, -1]
        assert int(logits.argmax()) == point["token"]
        assert int((logits > logits[point["rival"]]).sum()) + 1 == point["rank"]
        likelier = [
            tokenizer.decode([token]) for token in logits.argsort(descending=True)[: point["rank"] - 1].tolist()
        ]
        assert not set(likelier) & set(HINDI)


def _row(tokens):
    import torch

    return torch.tensor([tokens])
