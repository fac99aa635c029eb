import json
import os
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from langneurons.corpora import load_corpus, loading
from langneurons.errors import CorpusError, LangNeuronsWarning, LanguageError


def wikipedia(path: Path, texts: list[str | None]) -> None:
    """A parquet file of wikimedia/wikipedia's schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": str(i), "url": f"https://w/{i}", "title": f"T{i}", "text": text} for i, text in enumerate(texts)]
    pd.DataFrame(rows, columns=["id", "url", "title", "text"]).to_parquet(path, index=False)


def contents(corpus) -> dict[str, list[str]]:
    return {language: list(documents) for language, documents in corpus.items()}


def test_a_folder_of_every_kind_of_file(tmp_path):
    (tmp_path / "en.txt").write_bytes("\ufeffOne.\r\n\r\n  \nTwo.\u2028Still two.\n".encode())
    (tmp_path / "hi-0002.jsonl").write_text('{"text": "तीन", "n": 1}\n\n{"text": null, "n": "x"}\n{"text": " "}\n')
    wikipedia(tmp_path / "hi-0001.parquet", ["एक", None, "\n", "दो\nपंक्ति"])
    (tmp_path / "README.md").write_text("no text")
    corpus = load_corpus(tmp_path)
    assert contents(corpus) == {"en": ["One.", "Two.\u2028Still two."], "hi": ["एक", "दो\nपंक्ति", "तीन"]}
    assert repr(corpus) == "Corpus(en: 2 documents of 2 texts, hi: 3 documents of 3 texts)"
    assert contents(load_corpus(str(tmp_path), ["hi", "en"])) == contents(corpus)
    assert load_corpus(tmp_path, ["hi", "en", "hi"]).languages == ("hi", "en")


def test_a_local_clone_of_wikipedia(tmp_path):
    wikipedia(tmp_path / "20231101.hi/train-00001-of-00002.parquet", ["c"])
    wikipedia(tmp_path / "20231101.hi/train-00000-of-00002.parquet", ["a", "b"])
    wikipedia(tmp_path / "20220301.hi/train-00000-of-00001.parquet", ["old"])
    wikipedia(tmp_path / "20231101.en/train-00000-of-00001.parquet", ["e"])
    wikipedia(tmp_path / "ur/train/0000.parquet", ["u"])
    (tmp_path / ".git").mkdir()
    with pytest.warns(LangNeuronsWarning, match=r"Left out of .*: 20220301\.hi/\. "):
        corpus = load_corpus(tmp_path)
    assert contents(corpus) == {"en": ["e"], "hi": ["a", "b", "c"], "ur": ["u"]}
    with pytest.warns(LangNeuronsWarning, match="Left out"):
        assert contents(load_corpus(tmp_path, ["en"], text_column="title")) == {"en": ["T0"]}


def test_the_text_stays_on_disk(tmp_path):
    (tmp_path / "en.txt").write_text("a\nb\n")
    table = load_corpus(tmp_path).tables["en"]
    assert table.cache_files
    assert load_corpus(tmp_path).tables["en"].cache_files == table.cache_files


def test_a_changed_file_is_read_again(tmp_path):
    (tmp_path / "en.txt").write_text("a\nb\n")
    assert contents(load_corpus(tmp_path)) == {"en": ["a", "b"]}
    (tmp_path / "en.txt").write_text("a\nc\n")
    os.utime(tmp_path / "en.txt", ns=(1, 1))
    assert contents(load_corpus(tmp_path)) == {"en": ["a", "c"]}


def test_splits_are_told_by_the_names_of_files(tmp_path):
    for name in ("hi.train", "hi.heldout", "hi.extra", "en", "en.heldout", "ur.heldout"):
        (tmp_path / f"{name}.txt").write_text(name)
    with pytest.warns(LangNeuronsWarning, match=r"Left out of .*: hi\.extra\.txt\. "):
        corpus = load_corpus(tmp_path, ["hi", "en"])
    assert contents(corpus) == {"hi": ["hi.train"], "en": ["en"]}
    heldout = load_corpus(tmp_path, split="heldout")
    assert contents(heldout) == {"en": ["en.heldout"], "hi": ["hi.heldout"], "ur": ["ur.heldout"]}
    with pytest.raises(CorpusError, match=r"'ur' has no file of the split 'train' in .*, only ur.heldout.txt"):
        load_corpus(tmp_path)


def test_folders_with_characters_of_patterns_in_their_name(tmp_path):
    folder = tmp_path / "a [b] *?"
    folder.mkdir()
    (folder / "en.txt").write_text("a")
    assert contents(load_corpus(folder)) == {"en": ["a"]}


def test_progress_bars_and_logging_are_left_as_they_were(tmp_path, capfd):
    (tmp_path / "en.txt").write_text("a")
    before = (datasets.utils.are_progress_bars_disabled(), datasets.logging.get_verbosity())
    load_corpus(tmp_path)
    assert (datasets.utils.are_progress_bars_disabled(), datasets.logging.get_verbosity()) == before
    assert capfd.readouterr() == ("", "")


def test_a_dict():
    corpus = load_corpus({"hi": ("क", "", "\n"), "en": (str(i) for i in range(3)), "zh-Hant": ["字"]}, ["hi", "en"])
    assert contents(corpus) == {"hi": ["क"], "en": ["0", "1", "2"]}


def test_the_phrasebook(tmp_path, monkeypatch):
    header = "topic\ten\tfr\tes\tvi\tzh\thi\tur\n"
    (tmp_path / "phrasebook.tsv").write_text(header + 'food\tI "eat".\tNA\tes\tvi\t我吃\thi\tur\n')
    monkeypatch.setattr("langneurons.babel.FOLDER", tmp_path)
    corpus = load_corpus("babel")
    assert corpus.languages == ("en", "es", "fr", "hi", "ur", "vi", "zh")
    assert contents(corpus.select(["fr", "zh", "en"])) == {"fr": ["NA"], "zh": ["我吃"], "en": ['I "eat".']}


BAD_FILES = {
    "empty": ("en.txt", b"", r"en\.txt is empty"),
    "blank": ("en.txt", b"\n \n\t\n", r"no document in .*en\.txt: all is blank"),
    "latin-1": ("en.txt", b"ab\ncaf\xe9\n", r"en\.txt is not UTF-8: byte 6 "),
    "latin-1 jsonl": ("en.jsonl", b'{"text": "caf\xe9"}\n', r"en\.jsonl is not UTF-8: byte 13 "),
    "broken line": ("en.jsonl", b'{"text": "a"}\n{"text": "b\n', r"Line 2 of .*en\.jsonl is not JSON"),
    "no object": ("en.jsonl", b'"a"\n', r"Line 1 of .*en\.jsonl is not a JSON object but '\"a\""),
    "other columns": (
        "en.jsonl",
        b'{"txt": "a", "id": 1}\n',
        r"Unknown column 'text': did you mean 'txt'\? Possible: txt, id",
    ),
    "number": ("en.jsonl", b'{"text": 3}\n', r"'text' in line 1 of .* is not text but 3; name the column"),
    "half a pair": ("en.jsonl", b'{"text": "a"}\n{"text": "b\\ud800"}\n', r"Line 2 of .* holds half a surrogate pair"),
    "no parquet": ("en.parquet", b"PAR1 nothing", r"en\.parquet is not a whole parquet file"),
}


@pytest.mark.parametrize(("name", "data", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_named(name, data, message, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match=message) as caught:
        load_corpus(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.999])
def test_truncated_parquet_is_named(keep, tmp_path):
    path = tmp_path / "20231101.en" / "train-00000-of-00001.parquet"
    wikipedia(path, [f"document {i} " * 50 for i in range(2000)])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(CorpusError, match="train-00000-of-00001.parquet is not a whole parquet file"):
        load_corpus(tmp_path)


def test_parquet_damaged_inside_is_named(tmp_path):
    path = tmp_path / "en.parquet"
    wikipedia(path, [f"document {i} " * 50 for i in range(2000)])
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=r"en\.parquet is not a whole parquet file"):
        load_corpus(tmp_path)


def test_a_missing_parquet_column_lists_those_there(tmp_path):
    wikipedia(tmp_path / "en.parquet", ["a"])
    with pytest.raises(CorpusError, match="Unknown column 'texts': did you mean 'text'.* id, url, title, text"):
        load_corpus(tmp_path, text_column="texts")


def test_a_parquet_column_of_numbers_is_refused(tmp_path):
    pd.DataFrame({"text": np.arange(3)}).to_parquet(tmp_path / "en.parquet")
    with pytest.raises(CorpusError, match=r"'text' in .*en\.parquet is not text but 0"):
        load_corpus(tmp_path)


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "en.txt").write_text("a")
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(CorpusError, match=r"Cannot read .*en\.txt into the cache of datasets"):
        load_corpus(tmp_path)


def test_impossible_sources_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="There is no folder .*nowhere"):
        load_corpus(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match="no file named <language>"):
        load_corpus(tmp_path)
    (tmp_path / "en.txt").write_text("a")
    (tmp_path / "en.doc").write_text("a")
    with pytest.raises(CorpusError, match="is no file named <language>"):
        load_corpus(tmp_path / "en.doc")
    with pytest.raises(LanguageError, match="Unknown language 'enn': did you mean 'en'"):
        load_corpus(tmp_path, ["enn"])
    with pytest.raises(LanguageError, match=r"as a list, such as \['en'\]"):
        load_corpus(tmp_path, "en")
    with pytest.raises(LanguageError, match="at least one language"):
        load_corpus(tmp_path, [])
    with pytest.raises(CorpusError, match="no language"):
        load_corpus({})
    with pytest.raises(LanguageError, match="no language code"):
        load_corpus({"../en": ["a"]})
    with pytest.raises(CorpusError, match="are one text; give a list"):
        load_corpus({"en": "a text"})
    with pytest.raises(CorpusError, match="not valid Unicode"):
        load_corpus({"en": ["a\ud800"]})
    with pytest.raises(CorpusError, match=r"Document 1 of 'en' is of type int"):
        load_corpus({"en": iter(["a", 1])})
    with pytest.raises(CorpusError, match="'en' has no document in what was given"):
        load_corpus({"en": ["", " "]})
    with pytest.raises(LanguageError, match="'zh_CN' and 'zho_Hans', which are both 'zh-Hans'"):
        load_corpus({"zho_Hans": ["a"], "zh_CN": ["b"]})


def test_hub_data_sets_take_the_newest_configuration_of_each_language(tmp_path, monkeypatch):
    configs = []
    for config, texts in {"20220301.hi": ["old"], "20231101.hi": ["नया", "", None], "20231101.en": ["new"]}.items():
        wikipedia(tmp_path / config / "train-00000-of-00001.parquet", texts)
        data_files = [{"split": "train", "path": f"{config}/train-*"}]
        configs.append({"config_name": config, "data_files": data_files})
    (tmp_path / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")

    names, load = loading.get_dataset_config_names, loading.load_dataset
    monkeypatch.setattr(loading, "get_dataset_config_names", lambda _, **options: names(str(tmp_path), **options))
    monkeypatch.setattr(loading, "load_dataset", lambda _, *config, **options: load(str(tmp_path), *config, **options))
    corpus = load_corpus("wikimedia/wikipedia", ["hi", "en"])
    assert contents(corpus) == {"hi": ["नया"], "en": ["new"]}
    assert contents(load_corpus("wikimedia/wikipedia", ["hi"], text_column="id")) == {"hi": ["0", "1", "2"]}
    with pytest.raises(LanguageError, match="did you mean 'hi'"):
        load_corpus("wikimedia/wikipedia", ["hii"])
    with pytest.raises(CorpusError, match="Say which languages of wikimedia/wikipedia to load; it has en, hi"):
        load_corpus("wikimedia/wikipedia")
    with pytest.raises(CorpusError, match="Possible: id, url, title, text"):
        load_corpus("wikimedia/wikipedia", ["hi"], text_column="texte")
    with pytest.raises(CorpusError, match=r"cannot be read|can be read: .*heldout"):
        load_corpus("wikimedia/wikipedia", ["hi"], split="heldout")


def test_an_unknown_hub_data_set_is_refused_without_a_network(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(CorpusError, match="nobody/nothing is neither a folder here nor a hub data set") as caught:
        load_corpus("nobody/nothing", ["hi"])
    assert len(str(caught.value)) < 400


def test_real_text(text_folder: Path):
    train, heldout = load_corpus(text_folder), load_corpus(text_folder, split="heldout")
    assert train.languages == heldout.languages == ("en", "es", "fr", "hi", "ur", "vi", "zh")
    for language in train.languages:
        lines = (text_folder / f"{language}.train.txt").read_text("utf-8").split("\n")
        assert list(train.texts(language)) == [line for line in lines if line.strip()]
        assert 0.05 < len(heldout[language]) / len(train[language]) < 0.15
