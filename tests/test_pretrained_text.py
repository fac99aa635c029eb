"""The text of the pretrained study: articles to find neurons on, and a sentence of each of others to judge them on."""

import json

import pytest

from scripts.fetch_text import FILES, FetchError
from scripts.pretrained import divide_articles, prepare


def written(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_neurons_are_judged_on_one_sentence_of_articles_that_they_were_not_found_on(tmp_path):
    rows = [(article, sentence) for article in range(9) for sentence in range(3)]
    (tmp_path / "articles").mkdir()
    for language in FILES:
        lines = [json.dumps({"id": 3 * a + s, "article": f"a.{a}", "text": f"{language} {a} {s}"}) for a, s in rows]
        (tmp_path / "articles" / f"{language}.jsonl").write_text("\n".join(lines) + "\n")
    divide_articles(tmp_path / "articles", tmp_path / "text")
    for language in FILES:
        found_on = written(tmp_path / "text" / f"{language}.jsonl")
        judged_on = written(tmp_path / "text" / f"{language}.heldout.jsonl")
        assert [row["id"] for row in found_on] == [id for id in range(27) if id // 3 % 2 == 0]
        assert [row["text"] for row in judged_on] == [f"{language} 1 1", f"{language} 5 1"]


def test_a_folder_that_does_not_exist_is_refused_and_not_made(tmp_path):
    with pytest.raises(FetchError, match="There is no folder"):
        prepare(tmp_path / "dta", tmp_path / "cache")
    assert not list(tmp_path.iterdir())
