"""The articles are downloaded from a server on this machine, in the form that the repository gives them."""

import functools
import http.server
import json
import threading
from pathlib import Path

import pytest

from scripts import fetch_text
from scripts.fetch_text import CHECKSUMS, FILES, FetchError, articles, divide_articles, fetch_articles

SHARED = Path(__file__).parents[2] / "shared" / "data" / "articles"
DOCUMENTS = ["bbc.1", "bbc.1", "rt.com.2"]


@pytest.fixture
def served(tmp_path):
    """A folder, and the address under which a server on the loopback gives its files."""
    folder = tmp_path / "served"
    (folder / "NTREX-128").mkdir(parents=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def invented(folder: Path, monkeypatch) -> None:
    (folder / "DOCUMENT_IDS.tsv").write_text("\n".join(DOCUMENTS) + "\n")
    for language, name in FILES.items():
        lines = [f"One {language}.\r", " Cafe\u0301 two.\r", "Three.\r"]
        (folder / "NTREX-128" / name).write_bytes(("\n".join(lines) + "\n").encode())
        content = articles("\n".join(lines), DOCUMENTS, language)
        monkeypatch.setitem(CHECKSUMS, language, fetch_text.hashlib.sha256(content).hexdigest())


def test_every_language_is_written_with_the_article_and_source_of_each_sentence(served, tmp_path, monkeypatch):
    folder, address = served
    invented(folder, monkeypatch)
    fetch_articles(tmp_path / "articles", address)
    rows = [json.loads(line) for line in (tmp_path / "articles" / "hi.jsonl").read_text("utf-8").splitlines()]
    assert rows == [
        {"id": 0, "article": "bbc.1", "source": "bbc", "text": "One hi."},
        {"id": 1, "article": "bbc.1", "source": "bbc", "text": "Caf\u00e9 two."},
        {"id": 2, "article": "rt.com.2", "source": "rt", "text": "Three."},
    ]
    assert sorted(path.stem for path in (tmp_path / "articles").iterdir()) == sorted(FILES)


def test_what_is_there_is_not_downloaded_again(served, tmp_path, monkeypatch):
    folder, address = served
    invented(folder, monkeypatch)
    fetch_articles(tmp_path / "articles", address)
    fetch_articles(tmp_path / "articles", "http://127.0.0.1:9")


def test_another_text_a_missing_line_and_no_server_are_refused_in_one_sentence(served, tmp_path, monkeypatch):
    folder, address = served
    invented(folder, monkeypatch)
    hindi = folder / "NTREX-128" / FILES["hi"]
    hindi.write_text("One.\nTwo.\nFour.\n")
    with pytest.raises(FetchError, match="ref.hin.txt is another text"):
        fetch_articles(tmp_path / "articles", address)
    hindi.write_text("One.\nTwo.\n")
    with pytest.raises(FetchError, match="has 2 lines for 3 document ids"):
        fetch_articles(tmp_path / "articles", address)
    hindi.unlink()
    with pytest.raises(FetchError, match="cannot be downloaded"):
        fetch_articles(tmp_path / "articles", address)


def test_the_real_articles_come_out_byte_for_byte(served, tmp_path):
    if not SHARED.is_dir():
        pytest.skip("the folder of articles is not beside this checkout")
    folder, address = served
    rows = {
        language: [json.loads(line) for line in (SHARED / f"{language}.jsonl").read_text("utf-8").splitlines()]
        for language in FILES
    }
    (folder / "DOCUMENT_IDS.tsv").write_text("".join(row["article"] + "\n" for row in rows["en"]))
    for language, name in FILES.items():
        text = "".join(row["text"] + "\r\n" for row in rows[language])
        (folder / "NTREX-128" / name).write_bytes(text.encode())
    fetch_articles(tmp_path / "articles", address)
    for language in FILES:
        assert (tmp_path / "articles" / f"{language}.jsonl").read_bytes() == (SHARED / f"{language}.jsonl").read_bytes()


def written(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("sentences", "every", "judged"),
    [(1, 2, ["1 1", "5 1"]), (2, 1, [f"{a} {s}" for a in (1, 3, 5, 7) for s in (1, 2)])],
)
def test_neurons_are_judged_on_sentences_of_articles_that_they_were_not_found_on(tmp_path, sentences, every, judged):
    rows = [(article, sentence) for article in range(9) for sentence in range(3)]
    (tmp_path / "articles").mkdir()
    for language in FILES:
        lines = [json.dumps({"id": 3 * a + s, "article": f"a.{a}", "text": f"{language} {a} {s}"}) for a, s in rows]
        (tmp_path / "articles" / f"{language}.jsonl").write_text("\n".join(lines) + "\n")
    divide_articles(tmp_path / "articles", tmp_path / "text", sentences, every)
    for language in FILES:
        found_on = written(tmp_path / "text" / f"{language}.jsonl")
        judged_on = written(tmp_path / "text" / f"{language}.heldout.jsonl")
        assert [row["id"] for row in found_on] == [id for id in range(27) if id // 3 % 2 == 0]
        assert [row["text"] for row in judged_on] == [f"{language} {place}" for place in judged]
