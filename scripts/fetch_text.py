"""Download the news articles of NTREX-128, on which the numbers of README and docs/ are measured.

Usage (from the project's root)::

    python scripts/fetch_text.py articles
    python scripts/fetch_text.py articles --divide text    # and divides them, for studies/babel.toml

The first writes ``articles/<language>.jsonl`` for seven languages: id (the same sentence in every language), article,
source (the newspaper) and text. The files are checked against the checksums below, so that everybody measures on the
same bytes. The second also writes ``text/<language>.jsonl``, every other article, to find neurons on, and
``text/<language>.heldout.jsonl``, two sentences of each of the others, to judge them on.
The text is Microsoft's NTREX-128 (https://github.com/MicrosoftTranslator/NTREX), under CC-BY-SA-4.0.
"""

import argparse
import hashlib
import json
import sys
import unicodedata
import urllib.error
import urllib.request
from collections import defaultdict
from pathlib import Path

COMMIT = "8561f6a622db9edad1217683e5c83daefd8bb2bf"
SOURCE = f"https://raw.githubusercontent.com/MicrosoftTranslator/NTREX/{COMMIT}"
FILES = {
    "en": "newstest2019-src.eng.txt",
    "fr": "newstest2019-ref.fra.txt",
    "es": "newstest2019-ref.spa.txt",
    "vi": "newstest2019-ref.vie.txt",
    "zh": "newstest2019-ref.zho-CN.txt",
    "hi": "newstest2019-ref.hin.txt",
    "ur": "newstest2019-ref.urd.txt",
}
CHECKSUMS = {  # SHA-256 of what is written
    "en": "c7220fb284040ce2984fd2d4fbfb7c0418fb4d008f26084f7e467e93cea30af2",
    "fr": "2ce5f6f83e99551e8117e7a8775bf79a97bc06b033670c47d8d4d389e596c34b",
    "es": "66f9473bb4872fc1b95af8d8d6ba3a27a33d2885e5b39af69dcb63a224fecef8",
    "vi": "df65481c215cf645e5becc9334edc59cde622c1521c534a1e7ea13fd34cdfc1f",
    "zh": "694b001fba48de91695c0bde7b4b59a98331f816f77aa9b757201875c3da03b9",
    "hi": "b868bda49e54db45f08b5074872cde8edf2b9043c31d5bba2edce3dbeafeae50",
    "ur": "cb20c77e28117927429ef44f7b9e47831ea7841d273064fbb2c9e5db9f2b474f",
}


class FetchError(Exception):
    """A file cannot be had, or is not the one that numbers were measured on."""


def fetch_articles(folder: Path, source: str = SOURCE) -> None:
    """Download the sentences and write one file of articles for each language; files that are there already stay.

    Args:
        folder: Folder to write to.
        source: Address of the repository's files.

    Raises:
        FetchError: If a file cannot be downloaded, does not have one line for each document id, or is another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [language for language in FILES if checksum(folder / f"{language}.jsonl") != CHECKSUMS[language]]
    documents = _download(f"{source}/DOCUMENT_IDS.tsv").split() if missing else []
    for language in missing:
        content = articles(_download(f"{source}/NTREX-128/{FILES[language]}"), documents, language)
        if hashlib.sha256(content).hexdigest() != CHECKSUMS[language]:
            raise FetchError(f"{FILES[language]} is another text than the one that numbers were measured on.")
        (folder / f"{language}.jsonl").write_bytes(content)


def articles(text: str, documents: list[str], language: str) -> bytes:
    """The lines of a file as JSON objects, each with its id, article and source."""
    lines = text.rstrip("\n").split("\n")
    if len(lines) != len(documents):
        raise FetchError(f"{FILES[language]} has {len(lines)} lines for {len(documents)} document ids.")
    rows = [
        {"id": number, "article": article, "source": article.partition(".")[0], "text": _normal(line)}
        for number, (article, line) in enumerate(zip(documents, lines, strict=True))
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows if row["text"]).encode()


def divide_articles(articles: Path, folder: Path, sentences: int = 2, every: int = 1) -> None:
    """Write what neurons are found on, and what they are judged on: other articles, a few sentences of each.

    Every other article is whole in ``<language>.jsonl``. The others give some sentences to
    ``<language>.heldout.jsonl``, the same in every language, so that few tokens hold many articles, which are the
    clusters of the text.

    Args:
        articles: Folder of the articles.
        folder: Folder to write to.
        sentences: Sentences of an article to judge on; its first is left out, which is the headline.
        every: 2 judges on every second of the articles that neurons were not found on, 3 on every third.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for language in FILES:
        of_article: dict[str, list[str]] = defaultdict(list)
        for line in (articles / f"{language}.jsonl").read_text("utf-8").splitlines():
            of_article[json.loads(line)["article"]].append(line)
        lines_of = list(of_article.values())
        judged = [line for lines in lines_of[1 :: 2 * every] for line in lines[1 : 1 + sentences]]
        for name, lines in (("jsonl", sum(lines_of[::2], [])), ("heldout.jsonl", judged)):
            (folder / f"{language}.{name}").write_text("\n".join(lines) + "\n", "utf-8")


def _normal(line: str) -> str:
    return unicodedata.normalize("NFC", line.strip())


def checksum(path: Path) -> str:
    """The SHA-256 of a file; "" where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _download(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.read().decode("utf-8-sig")
    except (urllib.error.URLError, TimeoutError, UnicodeDecodeError) as error:
        raise FetchError(f"{address} cannot be downloaded: {error}.") from error


def main() -> None:
    """Parse the command line and download."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument("--source", default=SOURCE, help="address of a copy of the repository's files")
    parser.add_argument("--divide", type=Path, help="folder to write the divided articles to")
    arguments = parser.parse_args()
    try:
        fetch_articles(arguments.folder, arguments.source)
    except FetchError as error:
        sys.exit(str(error))
    print(f"{arguments.folder} holds the articles in {', '.join(FILES)}.")
    if arguments.divide is not None:
        divide_articles(arguments.folder, arguments.divide)
        print(f"{arguments.divide} holds them divided: to find neurons on, and to judge them on.")


if __name__ == "__main__":
    main()
