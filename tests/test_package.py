import ast
import operator
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import langneurons as ln
from langneurons import babel
from langneurons.errors import LangNeuronsWarning

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "langneurons"


def test_every_public_name_can_be_imported_twice_and_is_listed():
    for name in ln.__all__:
        assert getattr(ln, name) is getattr(ln, name)
    assert set(dir(ln)) == set(ln.__all__)
    with pytest.raises(AttributeError, match="attribute Nonsense"):
        ln.Nonsense  # noqa: B018


def test_the_package_shows_at_most_60_names_and_type_checkers_see_the_same():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    imported = [alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(imported) == sorted(ln.__all__)
    assert len(ln.__all__) <= 60


def test_every_room_can_be_reached_and_is_known_to_type_checkers():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module is None]
    declared = {alias.asname for node in nodes for alias in node.names}
    assert declared == {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    code = f"import langneurons as ln; print(*(getattr(ln, room).__name__ for room in {sorted(declared)}))"
    reached = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert reached == [f"langneurons.{room}" for room in sorted(declared)]


def test_a_public_name_that_equals_a_room_is_the_room():
    rooms = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert all(getattr(ln, name).__name__ == f"langneurons.{name}" for name in rooms & set(ln.__all__))


@pytest.mark.parametrize("name", sorted(ln._OLD_NAMES))
def test_a_name_of_an_earlier_version_goes_on_working_and_says_what_it_is_called(name):
    with pytest.warns(LangNeuronsWarning, match=rf"^ln\.{name} is called ln\.{ln._OLD_NAMES[name]}"):
        old = getattr(ln, name)
    assert old is operator.attrgetter(ln._OLD_NAMES[name])(ln)
    assert name not in dir(ln)


def test_functions_take_at_most_10_parameters_and_private_ones_8():
    crowded = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                number = len([name for name in names if name not in ("self", "cls")])
                if number > (8 if node.name.startswith("_") else 10):
                    crowded.append(f"{path.relative_to(PACKAGE)}: {node.name} takes {number}")
    assert crowded == []


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
