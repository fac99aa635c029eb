import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import langneurons as ln
from langneurons import babel

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "langneurons"


def test_every_public_name_can_be_imported_twice_and_is_listed():
    for name in ln.__all__:
        assert getattr(ln, name) is getattr(ln, name)
    assert set(dir(ln)) == set(ln.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        ln.Nonsense  # noqa: B018


def test_type_checkers_see_the_same_names_as_python():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("langneurons.")
        for alias in node.names
    }
    assert imported == set(ln.__all__) - {"__version__"}


def test_no_public_name_equals_a_room():
    rooms = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert not rooms & set(ln.__all__)


def test_importing_the_package_imports_none_of_the_heavy_libraries():
    code = (
        "import sys, langneurons; "
        "heavy = ('torch', 'transformers', 'transformer_lens', 'plotly', 'pandas', 'numba'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_statistics_are_reread_and_relabelled_without_the_model_libraries(tmp_path):
    code = (
        "import sys, torch, langneurons as ln; "
        "counts, tokens = torch.tensor([[[9, 1]], [[1, 1]]]), torch.tensor([10, 10]); "
        "stats = ln.ActivationStats.from_counts(counts, tokens, ['en', 'hi']); "
        "neurons = ln.LAPE(top=0.5, filter_quantile=0.5).identify(stats); ln.plot.layer_heatmap(neurons); "
        "print([m for m in ('transformers', 'transformer_lens', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_version_is_said_once():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == ln.__version__


def test_babel_ships_whole_and_small():
    files = [path for path in babel.FOLDER.iterdir() if path.is_file()]
    assert {"model.safetensors", "config.json", "tokenizer.json", "MODEL_CARD.md", "phrasebook.tsv"} <= {
        f.name for f in files
    }
    assert sum(file.stat().st_size for file in files) <= 20_000_000


def test_the_phrasebook_holds_300_aligned_sentences_in_seven_languages():
    corpus = ln.load_corpus("babel")
    assert set(corpus.languages) == set(babel.LANGUAGES)
    assert {len(corpus[language]) for language in corpus.languages} == {330}


def test_babel_has_at_least_12000_neurons_and_a_context_of_1024():
    description = ln.describe("babel")
    assert description.layers * description.neurons["act"] >= 12_000
    assert ln.load_model("babel").cfg.n_ctx == 1024
