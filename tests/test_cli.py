import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import langneurons as ln
from langneurons.cli import commands as cli
from langneurons.cli import main
from langneurons.errors import LangNeuronsError
from langneurons.study import demo
from langneurons.study.wording import patch_maker


def run(capsys, monkeypatch, *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process: exit status, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["langneurons", *arguments])
    try:
        main()
        status = 0
    except SystemExit as exit:
        status = int(exit.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of text files, the phrasebook's, a document a line."""
    folder = tmp_path_factory.mktemp("texts")
    corpus = ln.load_corpus("babel", ["en", "hi", "zh"])
    for language in corpus.languages:
        (folder / f"{language}.txt").write_text("\n".join(corpus.texts(language)) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def recorded(texts, tmp_path_factory, babel):
    out = tmp_path_factory.mktemp("runs") / "stats"
    return ln.record(babel, ln.load_corpus(str(texts)).shuffle(0), context_length=128, out=out, progress=False), out


def test_record_and_identify_give_what_python_gives(capsys, monkeypatch, texts, recorded, tmp_path):
    stats, _ = recorded
    out = tmp_path / "run"
    status, said, _ = run(
        capsys, monkeypatch, "record", "babel", str(texts), "--out", str(out), "--context-length", "128"
    )
    assert status == 0
    assert "langneurons identify" in said
    assert ln.ActivationStats.load(out).manifest() == stats.manifest()
    status, said, _ = run(capsys, monkeypatch, "identify", str(out), "--set", "top=0.02")
    assert status == 0
    assert "neurons in all" in said
    assert ln.NeuronSet.load(out / "neurons.lape.json") == ln.LAPE(top=0.02).identify(stats)


def test_identify_does_not_overwrite_the_neurons_of_another_method(capsys, monkeypatch, recorded, tmp_path):
    _, statistics = recorded
    words = ["identify", str(statistics), "--out", str(tmp_path / "n.json")]
    for _ in range(2):
        assert run(capsys, monkeypatch, *words, "--set", "top=0.02")[0] == 0
    before = (tmp_path / "n.json").read_bytes()
    for other in (["--method", "contrast"], ["--set", "top=0.01"], ["--set", "top=0.02", "--languages", "en,hi"]):
        status, _, said = run(capsys, monkeypatch, *words, *other)
        assert status == 2
        assert "n.json holds another neuron set, which differs in" in said
        assert "give another path (--out on the command line), or remove this one." in said
    assert "LAPE(top=0.02" in said or "languages" in said
    assert (tmp_path / "n.json").read_bytes() == before


def test_identify_says_that_scores_of_few_tokens_are_noise(capsys, monkeypatch, texts, tmp_path):
    for tokens, warns in (("100", True), ("1000", False)):
        out = str(tmp_path / tokens)
        words = ["record", "babel", str(texts), "--out", out, "--tokens-per-language", tokens, "--context-length", "64"]
        assert run(capsys, monkeypatch, *words)[0] == 0
        status, _, said = run(capsys, monkeypatch, "identify", out)
        assert status == 0
        assert said.count("langneurons: These scores are noise") == warns


def test_a_parquet_folder_in_the_schema_of_wikipedia_gives_the_same(texts, recorded, babel, tmp_path):
    stats, _ = recorded
    for file in texts.iterdir():
        lines = file.read_text("utf-8").splitlines()
        folder = tmp_path / f"20231101.{file.stem}"
        folder.mkdir()
        rows = {"id": [str(i) for i in range(len(lines))], "url": lines, "title": lines, "text": lines}
        pq.write_table(pa.table(rows), folder / "train-00000-of-00001.parquet")
    again = ln.record(babel, ln.load_corpus(str(tmp_path)).shuffle(0), context_length=128, progress=False)
    assert again.manifest() == stats.manifest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["identify", "nowhere"], "no such file"),
        (["identify", "{out}", "--method", "lap"], "did you mean 'lape'"),
        (["identify", "{out}", "--set", "tops=1"], "did you mean 'top'"),
        (["identify", "{out}", "--set", "top"], "field=value"),
        (["identify", "{out}", "--set", "top=7"], "top"),
        (["identify", "{out}", "--set", "top=many"], "takes a number"),
        (["identify", "{out}", "--set", "interpolation=3"], "Unknown interpolation 3. Possible: kthvalue, linear"),
        (["identify", "{out}", "--languages", "hii"], "did you mean 'hi'"),
        (["identify", "{out}", "--site", "post"], "site"),
        (["record", "babel", "{texts}", "--out", "{new}", "--languages", "en,hii"], "did you mean 'hi'"),
        (["record", "babel", "nowhere", "--out", "{new}"], "nowhere"),
        (["record", "babel", "{texts}", "--out", "{new}", "--tokens-per-language", "9999999"], "9,999,999|9999999"),
        (["record", "babel", "{texts}", "--out", "{new}", "--context-length", "4096"], "longer than"),
        (["record", "babel", "{texts}", "--out", "{new}", "--backend", "hook"], "did you mean 'hooked'"),
        (["record", "babel", "{texts}", "--out", "{out}"], "another recording"),
        (["describe", "/nowhere/model"], "nowhere"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence_and_status_2(
    capsys, monkeypatch, texts, recorded, tmp_path, arguments, message
):
    _, out = recorded
    filled = [argument.format(out=out, texts=texts, new=tmp_path / "new") for argument in arguments]
    status, _, said = run(capsys, monkeypatch, *filled)
    assert status == 2
    last = [line for line in said.splitlines() if line.startswith("langneurons: ")]
    assert len(last) == 1
    assert "Traceback" not in said
    assert re.search(message, last[0]), last[0]


def test_debug_shows_the_traceback(capsys, monkeypatch):
    with pytest.raises(LangNeuronsError):
        run(capsys, monkeypatch, "--debug", "identify", "nowhere")


def test_describe_says_size_neurons_memory_and_backend(capsys, monkeypatch):
    status, said, _ = run(capsys, monkeypatch, "describe", "babel")
    assert status == 0
    for part in ("8,030,880 parameters", "act 12,288", "auto takes hooked", "GB"):
        assert part in said


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_the_same_command_goes_on(texts, tmp_path):
    out = tmp_path / "run"
    # A shell that runs the tests in the background makes its children ignore Ctrl-C.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heard}; from langneurons.cli import main; main()"]
    command += ["record", "babel", str(texts), "--out", str(out), "--batch-size", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (out / "packed" / "manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert "Run the same command again" in said
    subprocess.run(command, check=True, capture_output=True)
    assert set(ln.ActivationStats.load(out).languages) == {"en", "hi", "zh"}


@pytest.mark.slow
@pytest.mark.timeout(900)  # minutes where other work takes the cores
def test_the_demo_writes_an_offline_page_and_says_where_it_is(capsys, monkeypatch, tmp_path):
    # In full it is run from the wheel, by `make test-wheel`.
    for name, fewer in {"HELDOUT_TOKENS": 200, "CONTROLS": 1, "PAGES": 10, "TEXTS": 20}.items():
        monkeypatch.setattr(demo, name, fewer)
    status, said, _ = run(capsys, monkeypatch, "demo", "--out", str(tmp_path / "demo"))
    assert status == 0
    for part in ("LAPE", "pooled-p90", "index.html", "Next:", "this recording can detect a difference of"):
        assert part in said
    turned = re.findall(r"^ +(hi|zh|fr) +0% +(\d+)% +(\d+)% +(\d+)%$", said, re.MULTILINE)
    assert {language for language, *_ in turned} == {"hi", "zh", "fr"}
    assert all(int(moved) > 50 > max(int(own), int(other)) for _, moved, own, other in turned)
    page = (tmp_path / "demo" / "index.html").read_text("utf-8")
    assert "<script src=" not in page
    assert "<link" not in page
    neurons = json.loads(Path(tmp_path / "demo" / "neurons.lape.json").read_text("utf-8"))
    assert neurons["schema"].startswith("langneurons/neuron-set")


def test_perplexity_of_the_model_as_it_is(capsys, monkeypatch, texts):
    arguments = ["babel", str(texts), "--tokens-per-language", "300", "--context-length", "64", "--split", "train"]
    status, said, _ = run(capsys, monkeypatch, "perplexity", *arguments)
    assert status == 0
    assert "bits_per_byte" in said
    assert [line.split()[0] for line in said.splitlines()[1:]] == ["en", "hi", "zh"]


@pytest.mark.filterwarnings("ignore:.* one cluster carries more than a quarter")
def test_a_sweep_writes_the_listed_values_at_one_languages_neurons(capsys, monkeypatch, texts, recorded, tmp_path):
    stats, folder = recorded
    neurons = ln.LAPE(top=0.01).identify(stats).save(tmp_path / "neurons.json")
    arguments = ["babel", str(texts), "--neurons", str(neurons), "--statistics", str(folder), "--label", "hi"]
    arguments += ["--constants", "-1,0", "--quantiles", "0.5", "--out", str(tmp_path / "out")]
    arguments += ["--tokens-per-language", "300", "--context-length", "64", "--split", "train"]
    status, _, error = run(capsys, monkeypatch, "sweep", *arguments)
    assert status == 0, error
    table = ln.effects.EffectTable.load(tmp_path / "out" / "sweep").rows
    assert set(zip(table["patched"], table["kind"], table["amount"], strict=True)) == {
        ("hi", "set", -1), ("hi", "set", 0), ("hi", "quantile", 0.5)
    }  # fmt: skip


def test_the_perplexity_matrix_comes_with_its_controls(capsys, monkeypatch, texts, recorded, tmp_path):
    stats, folder = recorded
    neurons = ln.LAPE(top=0.01).identify(stats).save(tmp_path / "neurons.json")
    arguments = ["babel", str(texts), "--neurons", str(neurons), "--statistics", str(folder), "--value", "p10"]
    arguments += ["--controls", "1", "--tokens-per-language", "300", "--context-length", "64", "--split", "train"]
    status, said, error = run(capsys, monkeypatch, "perplexity-matrix", *arguments, "--out", str(tmp_path / "out"))
    assert status == 0, error
    assert "Selectivity" in said
    kept = ln.effects.EffectTable.load(tmp_path / "out" / "matrix")
    assert set(kept.rows["patched"]) == set(stats.languages)
    assert set(kept.controls["control"]) == {"matched", "other language", "neutral"}
    few = ["--languages", "en,hi", "--controls", "0", "--out", str(tmp_path / "few")]
    # What perplexity did with neurons in 0.1.0.
    status, _, error = run(capsys, monkeypatch, "perplexity", *arguments, *few)
    assert status == 0, error
    assert error.count("the command perplexity is called perplexity-matrix") == 1
    limited = ln.effects.EffectTable.load(tmp_path / "few" / "matrix").rows
    assert set(limited["patched"]) == set(limited["measured"]) == {"en", "hi"}


def test_validity_prints_the_split_half_and_the_nulls(capsys, monkeypatch, texts, recorded):
    _, folder = recorded
    status, said, _ = run(capsys, monkeypatch, "validity", str(folder), "--set", "top=0.02", "--splits", "3")
    assert status == 0
    assert "Split-half reliability of LAPE(top=0.02" in said
    nulls = ["--model", "babel", "--corpus", str(texts), "--tokens", "400", "--context-length", "64", "--splits", "2"]
    status, said, _ = run(capsys, monkeypatch, "validity", str(folder), *nulls)
    assert status == 0
    assert "shuffled" in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["perplexity", "babel", "babel", "--value", "much"], "Missing option '--neurons'"),
        (["perplexity-matrix", "babel", "babel", "--value", "p90", "--neurons", "nowhere.json"], "no such file"),
        (["perplexity", "babel", "babel", "--neurons", "nowhere.json"], "no such file"),
        (["perplexity", "babel", "babel", "--tokens", "9999999"], "counted tokens"),
        (["perplexity", "babel", "babel", "--context-length", "4096"], "longer than babel's"),
        (["perplexity", "babel", "babel", "--each", "line"], "--each: Unknown each 'line'"),
        (["validity", "nowhere"], "no such file"),
    ],
)
def test_what_the_user_can_mend_is_a_sentence_and_status_2(capsys, monkeypatch, arguments, sentence):
    status, _, said = run(capsys, monkeypatch, *arguments)
    assert status == 2
    assert sentence in said
    assert "Traceback" not in said


def test_nulls_need_a_model_and_a_corpus(capsys, monkeypatch, recorded):
    status, _, said = run(capsys, monkeypatch, "validity", str(recorded[1]), "--model", "babel")
    assert status == 2
    assert "need both --model and --corpus" in said


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder of XNLI files of three languages."""
    folder, labels = tmp_path_factory.mktemp("pairs"), ["entailment", "neutral", "contradiction"]
    for language in ("en", "hi", "zh"):
        lines = [f"premise {row // 3}\thypothesis {row}\t{labels[row % 3]}" for row in range(18)]
        (folder / f"test-{language}.tsv").write_text("\n".join(["premise\thypothesis\tlabel", *lines]), "utf-8")
    return folder


def test_evaluate_prints_scores_and_effects_and_goes_on(capsys, monkeypatch, recorded, pairs, tmp_path):
    stats, folder = recorded
    neurons = ln.LAPE(top=0.02).identify(stats).save(tmp_path / "neurons.json")
    command = ["evaluate", "babel", "--task", f"xnli={pairs}", "--languages", "en,hi", "--items", "5"]
    command += ["--neurons", str(neurons), "--patch", "0", "--patch", "add:mean", "--statistics", str(folder)]
    command += ["--controls", "1", "--out", str(tmp_path / "run")]
    status, said, _ = run(capsys, monkeypatch, *command)
    assert status == 0
    assert "chance" in said
    assert "add:mean" in said
    kept = ln.evaluation.Evaluation.load(tmp_path / "run" / "evaluation")
    assert len(kept.effects()) == 4
    monkeypatch.setattr(ln.XNLI, "measure", lambda *arguments: pytest.fail("measured again"))
    assert run(capsys, monkeypatch, *command)[0] == 0


def test_evaluate_asks_as_its_options_say(capsys, monkeypatch):
    command = ["evaluate", "babel", "--task", "xquad=babel", "--languages", "en", "--items", "3", "--seed", "2"]
    command += ["--chat", "auto", "--shots", "1", "--temperature", "0.7", "--top-p", "0.9", "--max-new-tokens", "4"]
    tasks, evaluate = [], ln.evaluate
    monkeypatch.setattr(
        ln, "evaluate", lambda model, given, *rest, **more: tasks.extend(given) or evaluate(model, given, *rest, **more)
    )
    status, _, error = run(capsys, monkeypatch, *command)
    assert status == 0, error
    assert tasks[0].prompting == ln.settings.Prompting(chat="auto", shots=1, temperature=0.7, top_p=0.9, seed=2)
    assert len(tasks[0].examples["en"]) == 1
    status, _, error = run(capsys, monkeypatch, *command, "--chat", "maybe")
    assert status == 2
    assert "--chat: Unknown chat 'maybe'. Possible: auto, true, false" in error


def test_evaluate_asks_whatever_tasks_are_given(capsys, monkeypatch, texts, pairs, tmp_path):
    saved = ln.tasks.ClassificationHead(torch.zeros(3, 160), torch.zeros(3), ("entailment", "neutral", "contradiction"))
    saved.save(tmp_path / "head")
    heldout = tmp_path / "texts"
    heldout.mkdir()
    for path in texts.iterdir():
        (heldout / f"{path.stem}.heldout.txt").write_text(path.read_text("utf-8"), "utf-8")
    command = ["evaluate", "babel", "--xnli", str(pairs), "--head", str(tmp_path / "head"), f"--prompts={heldout}"]
    status, said, error = run(
        capsys, monkeypatch, *command, "--source", "en", "--languages", "hi", "--items", "4", "--max-new-tokens", "4"
    )
    assert status == 0, error
    assert "language forcing" in said
    assert "head" in said
    # The options of 0.1.0 go on working, and what they are called is said once each.
    assert error.count("the option --xnli is called --task xnli=.") == 1
    assert "the option --source is called --beginnings." in error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluate", "babel"], "give --task, such as --task xnli=FOLDER"),
        (["evaluate", "babel", "--task", "PAIRS"], "A task reads kind=source"),
        (["evaluate", "babel", "--task", "xnly=PAIRS"], "did you mean 'xnli'"),
        (["evaluate", "babel", "--xnli", "nowhere"], "no folder nowhere"),
        (["evaluate", "babel", "--xnli", "PAIRS", "--patch", "0"], "give --neurons too"),
        (["evaluate", "babel", "--xnli", "PAIRS", "--languages", "fr"], "Unknown language 'fr'"),
        (["evaluate", "babel", "--xnli", "PAIRS", "--calibration", "some"], "Unknown calibration 'some'"),
        (["evaluate", "babel", "--xnli", "PAIRS", "--items", "0"], "at least 1, given 0"),
        (["evaluate", "babel", "--xnli", "PAIRS", "--head", "nowhere"], "no such file"),
    ],
)
def test_what_cannot_be_evaluated_is_a_sentence(capsys, monkeypatch, pairs, arguments, sentence):
    given = [argument.replace("PAIRS", str(pairs)) for argument in arguments]
    status, _, said = run(capsys, monkeypatch, *given)
    assert status == 2
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("text", "patch"),
    [
        ("0", "SetTo"),
        ("set:1.5", "SetTo"),
        ("mean", "SetTo"),
        ("add:p90", "Add"),
        ("scale:2", "Scale"),
        ("diffmean", "DiffMean"),
        ("diffmean:2", "DiffMean"),
    ],
)
def test_patches_are_written_as_operation_and_value(recorded, text, patch):
    stats, _ = recorded
    neurons = ln.LAPE(top=0.02).identify(stats)
    assert type(patch_maker(text, stats)(neurons["hi"], "hi")).__name__ == patch


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("sett:1", "did you mean 'set'"), ("scale:much", "factor is a number"), ("diffmean", "--stat")],
)
def test_operations_that_cannot_be_meant_are_sentences(text, sentence):
    with pytest.raises(LangNeuronsError, match=sentence):
        patch_maker(text, None)


@pytest.mark.parametrize(
    ("value", "sentence"), [("much", "number, mean, or a percentile"), ("p101", "percentile"), ("p90", "--statistics")]
)
def test_a_value_that_cannot_be_written_is_a_sentence(value, sentence):
    with pytest.raises(LangNeuronsError, match=sentence):
        patch_maker(value, None)


COMMANDS = ("record", "identify", "validity", "compare-methods", "profile", "report", "describe", "study", "demo")
COMMANDS += ("perplexity", "perplexity-matrix", "evaluate", "ablate", "polysemanticity", "finetune")
COMMANDS += ("transfer-experiment", "sweep", "bake", "push", "confusion-point", "task-gradient", "survival")
HEAVY = ("torch", "scipy", "numpy", "pandas", "datasets", "transformers", "transformer_lens", "sklearn", "pyarrow")
LIGHT = f"""
import resource, sys
sys.argv = ["langneurons", *sys.argv[1:]]
from langneurons.cli import main
try:
    main()
except SystemExit as end:
    status = end.code
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print("ended", status, heavy, used.ru_utime + used.ru_stime)
"""


def alone(*arguments: str) -> tuple[str, int, list[str], float]:
    """Run the command line in a process of its own: all that it said, its status, heavy imports, processor time."""
    ran = subprocess.run([sys.executable, "-c", LIGHT, *arguments], capture_output=True, text=True, check=True)
    said, _, end = ran.stdout.rpartition("ended ")
    status, heavy, seconds = re.fullmatch(r"(\d+) (\[.*\]) ([\d.]+)\n", end).groups()
    return said + ran.stderr, int(status), ast.literal_eval(heavy), float(seconds)


def test_help_lists_every_command():
    said, status, heavy, _ = alone("--help")
    assert (status, heavy) == (0, [])
    assert set(re.findall(r"^  ([a-z][a-z-]+)  ", said, re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--help"], "Usage"),
        (["ablate", "--help"], "--tokens-per-language"),
        (["--version"], f"langneurons {ln.__version__}"),
        (["recrod"], "Did you mean 'record'?"),
        (["probee"], "Did you mean 'polysemanticity'"),
        (["transferr"], "Did you mean 'transfer-experiment'"),
        (["zzz"], "No such command 'zzz'. langneurons --help lists all commands."),
        (["ablate", "m", "t", "--contrls", "3"], "--controls"),
        (["record", "m", "t"], "Missing option '--out'"),
        (["finetune", "m", "t", "--out", "x", "--learning-rate", "-1"], "learning_rate must be above 0 and finite"),
        (["transfer", "m", "t", "--out", "x", "--targets", "hi", "--warmup", "1"], "at least 0 and below 1, given 1."),
        (["record", "m", "t", "--out", "x", "--batch-size", "many"], "--batch-size: batch_size must be a whole number"),
        (["evaluate", "m", "--backend", "hook"], "did you mean 'hooked'"),
    ],
)
def test_help_and_usage_errors_come_before_anything_heavy_is_imported(arguments, sentence):
    said, status, heavy, _ = alone(*arguments)
    assert sentence in said
    assert (status, heavy) == (0 if "--help" in arguments or "--version" in arguments else 2, [])


def test_help_and_usage_errors_take_the_processor_time_of_ten_imports_of_typer_at_most():
    imported = (
        "import resource, typer; used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime)"
    )
    command = [sys.executable, "-c", imported]
    least = min(float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(3))
    for arguments in (["--help"], ["record", "m", "t", "--oout", "x"], ["study", "no-such-file.toml"]):
        assert min(alone(*arguments)[3] for _ in range(3)) <= 10 * least


@pytest.mark.parametrize("old", ["probe", "transfer", "compare", "models"])
def test_a_command_of_0_1_0_goes_on_working_and_says_once_what_it_is_called(capsys, monkeypatch, old):
    status, said, error = run(capsys, monkeypatch, old, "--help")
    assert status == 0
    assert f"Usage: langneurons {cli.OLD_COMMANDS[old]}" in said
    assert error.count(f"the command {old} is called {cli.OLD_COMMANDS[old]}.") == 1
