import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import langneurons as ln
from langneurons.errors import (
    CorpusError,
    ExecutorError,
    HookSiteError,
    ModelError,
    StaleArtefactError,
    StatisticsError,
    StorageError,
)
from langneurons.models import SITES
from langneurons.recording import passes, recorder
from tests.recording.conftest import LANGUAGES, documents, record, same
from tests.tiny_models import save_tiny, tiny_model

ROOT = Path(__file__).parents[2]


def naive(folder, language: str, texts: dict[str, list[str]], context_length: int = 32) -> torch.Tensor:
    """All counted activations of a language, by torch hooks on the Hugging Face model: "token layer neuron"."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    stream = []
    for text in texts[language]:
        stream += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.act_fn.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    counted = []
    for start in range(0, len(stream), context_length - 1):
        block = [tokenizer.bos_token_id, *stream[start : start + context_length - 1]]
        seen.clear()
        with torch.no_grad():
            model(torch.tensor([block]))
        keep = [i for i, token in enumerate(block) if i > 0 and token not in tokenizer.all_special_ids]
        if len(seen) == 1 or len({id(one) for one in seen}) == 1:
            raise AssertionError("the hooks saw one layer only")
        counted.append(torch.stack(seen, dim=1)[keep])
    return torch.cat(counted)


def test_record_equals_naive_hooks_on_the_hugging_face_model(tiny_folder, whole):
    n = int(whole.tokens[0])
    for i, language in enumerate(LANGUAGES):
        values = naive(tiny_folder, language, documents())[:n].double()
        assert len(values) == n
        assert (whole.probability()[i] - (values > 0).double().mean(0)).abs().max() <= 2 / n
        assert torch.allclose(whole.mean()[i], values.mean(0), atol=1e-5)
        assert torch.allclose(whole.std()[i].double(), values.std(0, correction=0), atol=1e-5)
        assert torch.allclose(whole[language].maximum().values.double(), values.amax(0), atol=1e-5)


def test_quantiles_of_real_activations_have_the_right_rank_for_the_worst_neuron(tiny_folder, tiny):
    texts = documents(n=500)
    stats = record(tiny, ln.load_corpus(texts), batch_size=64)
    n = int(stats.tokens[0])
    raw = {language: naive(tiny_folder, language, texts)[:n] for language in LANGUAGES}
    for share in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99):
        found = stats.quantile(share)
        for i, language in enumerate(LANGUAGES):
            below = (raw[language] < found[i] - 1e-6).double().mean(0)
            up_to = (raw[language] <= found[i] + 1e-6).double().mean(0)
            assert torch.maximum(below - share, share - up_to).max() <= 0.005


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batch_size_does_not_change_a_byte(tiny, corpus, whole, batch_size):
    assert same(record(tiny, corpus, batch_size=batch_size), whole)


@pytest.mark.parametrize("parts", [2, 5])
def test_shards_added_in_any_order_do_not_change_a_byte(tiny, corpus, whole, parts):
    shards = [record(tiny, corpus, shard=(i, parts), batch_size=2) for i in range(parts)]
    total = shards[-1]
    for shard in shards[:-1]:
        total = total + shard
    assert same(total, whole)
    with pytest.raises(StatisticsError, match="count it twice"):
        total + shards[0]


def test_a_language_recorded_alone_or_later_equals_recording_it_with_the_others(tiny, corpus, whole):
    early = record(tiny, corpus.select(["en", "hi"]), tokens_per_language=int(whole.tokens[0]))
    late = record(tiny, corpus.select(["zh"]), like=early)
    assert same(early + late, whole)


def test_more_documents_of_a_language_can_be_added_on_the_same_edges(tiny, corpus):
    first = record(tiny, corpus.select(["hi"]), tokens_per_language=200)
    other = ln.load_corpus({"hi": documents(seed=9)["hi"]})
    more = record(tiny, other, tokens_per_language=300, like=first)
    assert int((first + more).tokens[0]) == 500
    unlike = record(tiny, other, tokens_per_language=300)
    with pytest.raises(StatisticsError, match="like="):
        first + unlike


def test_every_site_is_recorded_in_one_pass_as_alone(tiny, corpus):
    together = record(tiny, corpus, sites=SITES)
    for site in together.sites:
        assert same(together.at(site), record(tiny, corpus, sites=(site,)))
    assert together.at("head").shape == (2, 4)
    assert (together.at("q").shape, together.at("v").shape) == ((2, 32), (2, 16))


def test_pre_and_act_share_their_sign_and_relate_by_the_activation_function(tiny, corpus):
    stats = record(tiny, corpus, sites=("act", "pre"))
    assert torch.equal(stats.probability(), stats.at("pre").probability())
    above = stats.probability() > 0.2
    act, pre = stats.quantile(0.9), torch.nn.functional.silu(stats.at("pre").quantile(0.9))
    assert torch.allclose(act[above], pre[above], atol=1e-4)


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_both_backends_record_the_same_to_rounding(tmp_path, corpus, architecture, backend):
    folder = save_tiny(tmp_path / "model", architecture)
    stats = record(ln.load_model(str(folder), backend=backend), corpus.select(["en"]))
    reference = record(ln.load_model(str(folder), backend="bridge"), corpus.select(["en"]))
    assert torch.allclose(stats.mean(), reference.mean(), atol=1e-5)
    assert (stats.probability() - reference.probability()).abs().max() <= 2 / int(stats.tokens[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_are_recorded(tiny_folder, corpus, whole, dtype):
    stats = record(ln.load_model(str(tiny_folder), dtype=dtype), corpus)
    assert stats.model.dtype == dtype
    assert (stats.probability() - whole.probability()).abs().mean() < 0.02
    with pytest.raises(StaleArtefactError, match="dtype"):
        record(ln.load_model(str(tiny_folder), dtype=dtype), corpus, like=whole)


def test_the_same_call_on_a_finished_folder_records_nothing_again(tiny, corpus, whole, tmp_path, monkeypatch):
    first = record(tiny, corpus, out=tmp_path / "run")
    assert same(first, whole)
    monkeypatch.setattr(recorder, "pack", lambda *arguments: pytest.fail("it recorded again"))
    assert same(record(tiny, corpus, out=tmp_path / "run"), whole)
    assert (tmp_path / "run" / "purity.parquet").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_folder_of_another_recording_or_other_files_is_refused(tiny, corpus, tmp_path):
    record(tiny, corpus, out=tmp_path / "run")
    with pytest.raises(StaleArtefactError, match="context_length"):
        record(tiny, corpus, out=tmp_path / "run", context_length=48)
    with pytest.raises(StaleArtefactError, match="corpus"):
        record(tiny, corpus.take(30), out=tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="no recording"):
        record(tiny, corpus, out=tmp_path / "other")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def test_ctrl_c_keeps_whole_batches_and_the_same_call_goes_on(tiny, corpus, whole, tmp_path, interrupted_at):
    calls = interrupted_at(5)
    with pytest.raises(KeyboardInterrupt):
        record(tiny, corpus, out=tmp_path / "run", batch_size=2)
    before = len(calls)
    assert same(record(tiny, corpus, out=tmp_path / "run", batch_size=2), whole)
    total = len(calls)
    record(tiny, corpus, out=tmp_path / "fresh", batch_size=2)
    assert len(calls) == 2 * total
    assert before == 5


@pytest.mark.slow
def test_sigkill_at_random_moments_and_resuming_give_the_same_bytes(tiny_folder, tiny, corpus, whole, tmp_path):
    script = (
        "import sys, langneurons as ln; from langneurons.recording import passes;"
        "from tests.recording.conftest import documents, record;"
        "passes.SECONDS_BETWEEN_CHECKPOINTS = 0.0;"
        "record(ln.load_model(sys.argv[1]), ln.load_corpus(documents()), out=sys.argv[2], batch_size=1)"
    )
    out = tmp_path / "run"
    command = [sys.executable, "-c", script, str(tiny_folder), str(out)]
    killed = 0
    for extra in (0.0, 0.15, 0.3):
        process = subprocess.Popen(command, cwd=ROOT)
        done = len(list((out / "checkpoints").glob("*.safetensors"))) if out.exists() else 0
        while process.poll() is None and len(list((out / "checkpoints").glob("*.safetensors"))) <= done:
            time.sleep(0.01)
        time.sleep(extra)
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed >= 1
    assert same(record(tiny, corpus, out=out, batch_size=1), whole)


def test_a_recording_stopped_while_it_tidies_up_leaves_nothing_more_than_a_whole_one(
    tiny, corpus, whole, tmp_path, monkeypatch
):
    def stop(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(passes.storage, "remove_folder", stop)
        with pytest.raises(KeyboardInterrupt):
            record(tiny, corpus, out=tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints").exists()
    assert same(record(tiny, corpus, out=tmp_path / "run"), whole)
    record(tiny, corpus, out=tmp_path / "whole")
    files = [{path.relative_to(out) for path in out.rglob("*")} for out in (tmp_path / "run", tmp_path / "whole")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(tiny_folder, tiny, corpus, whole, tmp_path):
    script = (
        "import sys, langneurons as ln; from tests.recording.conftest import documents, record;"
        "record(ln.load_model(sys.argv[1]), ln.load_corpus(documents()), out=sys.argv[2], shard=(0, 2))"
    )
    subprocess.run([sys.executable, "-c", script, str(tiny_folder), str(tmp_path)], cwd=ROOT, check=True)
    assert same(ln.ActivationStats.load(tmp_path) + record(tiny, corpus, shard=(1, 2)), whole)


def test_a_full_disk_stops_with_a_sentence_and_the_same_call_goes_on(tiny, corpus, whole, tmp_path, monkeypatch):
    saved = passes.RecordingFolder.save
    calls = []

    def full(self, language, state):
        calls.append(language)
        if len(calls) == 2:
            raise StorageError("Cannot write: the disk is full.")
        saved(self, language, state)

    monkeypatch.setattr(passes.RecordingFolder, "save", full)
    with pytest.raises(StorageError, match="disk is full"):
        record(tiny, corpus, out=tmp_path / "run")
    assert same(record(tiny, corpus, out=tmp_path / "run"), whole)


def test_statistics_of_another_model_site_or_context_are_refused_as_like(tiny, corpus, whole):
    other = ln.load_model("other", hf_model=tiny_model("llama", seed=5), tokenizer=tiny.tokenizer)
    with pytest.raises(StaleArtefactError, match="model"):
        record(other, corpus, like=whole)
    with pytest.raises(StaleArtefactError, match="sites"):
        record(tiny, corpus, like=whole, sites=("pre",))
    with pytest.raises(StaleArtefactError, match="context length"):
        record(tiny, corpus, like=whole, context_length=48)


def test_impossible_requests_are_refused_in_one_sentence(tiny, corpus):
    cases = [
        (CorpusError, "hi|en|zh", {"tokens_per_language": 10**6}),
        (ModelError, "longer than", {"context_length": 4096}),
        (StatisticsError, "multiple of 16", {"context_length": 33}),
        (HookSiteError, "did you mean 'post'", {"sites": ("pos",)}),
        (StatisticsError, r"sites must be at least one site, given \(\)", {"sites": ()}),
        (ExecutorError, "batch_size must be a whole number of at least 1, or None, given 0", {"batch_size": 0}),
        (StatisticsError, "shard", {"shard": (2, 2)}),
    ]
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            record(tiny, corpus, **options)


def test_the_plan_names_tokens_memory_disk_and_time(tiny, corpus, capsys):
    ln.record(tiny, corpus, context_length=32)
    said = capsys.readouterr().err
    for part in ("counted tokens", "of memory", "on disk", "second"):
        assert part in said
