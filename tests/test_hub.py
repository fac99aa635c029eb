"""Results go to a hub and come back: to a small one on the loopback, by the installed client of Hugging Face."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

import langneurons as ln
from langneurons.analysis.profiles import Profiles
from langneurons.cli.commands import run
from langneurons.errors import StorageError
from langneurons.training.finetuned import Finetuned
from tests.hub_server import TOKEN, running_hub

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "babel"  # one of nearly every kind
NEURONS = ln.NeuronSet.of({"hi": [(0, 3), (1, 2)], "ur": [(1, 2)]}, (2, 8), "act", model="f" * 32, method="LAPE")


@pytest.fixture
def server(monkeypatch, tmp_path):
    with running_hub() as running:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose storage has a protocol of its own
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        template = running.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def test_a_neuron_set_comes_back_from_its_address_and_from_its_commit(server, capsys):
    first = NEURONS.push_to_hub("me/neurons", "lape")
    said = capsys.readouterr().err
    assert said.startswith("Uploading to me/neurons/lape: neuron-set.json (0.")
    assert said.endswith("None of them holds texts.\n")
    assert server.private == {"me/neurons": True}
    assert set(server.files("dataset", "me/neurons")) == {"README.md", "lape/neuron-set.json"}
    changed = NEURONS["hi"].push_to_hub("me/neurons", "lape")
    assert first != changed
    assert ln.load("hub:me/neurons/lape") == ln.load(changed) == NEURONS["hi"]
    assert ln.load(first) == ln.NeuronSet.load(first) == ln.load("hub:me/neurons@" + first.partition("@")[2]) == NEURONS


@pytest.mark.parametrize("name", sorted(path.name for path in RESULTS.iterdir()))
def test_a_result_of_every_kind_comes_back_as_it_was_saved(server, name):
    result = ln.load(RESULTS / name)
    loaded = ln.load(result.push_to_hub("me/results"))
    assert type(loaded) is type(result)
    assert str(loaded) == str(result)


def test_the_card_says_what_it_is_where_it_comes_from_and_how_it_is_loaded(server):
    NEURONS.push_to_hub("me/neurons", "lape", model="meta-llama/Llama-3.1-8B", revision="d04e592", licence="apache-2.0")
    card = server.files("dataset", "me/neurons")["README.md"].decode()
    assert card.startswith("---\ntags:\n- langneurons\n---\n\n# neurons\n")
    for row in (
        "| kind | neuron-set |",
        "| model | meta-llama/Llama-3.1-8B |",
        "| revision | d04e592 |",
        f"| weights | {'f' * 32} |",
        "| corpus | – |",
        "| method | LAPE |",
        "| options | site: act; shape: 2 layers x 8; neurons: hi: 2; ur: 1 |",
        "| licence | apache-2.0 |",
    ):
        assert row in card.splitlines()
    assert "\nresult = ln.load('hub:me/neurons/lape')\n" in card


def test_a_card_keeps_what_others_wrote_and_has_one_part_for_each_result(server):
    NEURONS.push_to_hub("me/neurons", "lape")
    files = server.files("dataset", "me/neurons")
    files["README.md"] = files["README.md"].replace(b"# neurons\n", b"# Mine\n\nWritten by hand.\n")
    NEURONS.push_to_hub("me/neurons", "other")
    NEURONS.push_to_hub("me/neurons", "lape", corpus="Wikipedia | dumps")
    card = server.files("dataset", "me/neurons")["README.md"].decode()
    assert "# Mine\n\nWritten by hand.\n" in card
    assert (card.count("## lape\n"), card.count("## other\n")) == (1, 1)
    assert "| corpus | Wikipedia \\| dumps |" in card


def test_what_was_there_before_under_the_name_is_replaced(server, babel_stats):
    babel_stats.select(["en", "hi"]).push_to_hub("me/statistics", "babel")
    babel_stats.select(["en"]).push_to_hub("me/statistics", "babel")
    files = server.files("dataset", "me/statistics")
    assert set(files) == {
        f"babel/{name}" for name in ("en.act.safetensors", "model.safetensors", "statistics.json")
    } | {"README.md"}
    loaded = ln.load("hub:me/statistics/babel")
    assert torch.equal(loaded.probability(), babel_stats.select(["en"]).probability())
    card = files["README.md"].decode()
    assert f"| tokens | en: {int(babel_stats.select(['en']).tokens):,} |" in card
    assert "| model | babel |" in card


def test_texts_that_a_result_holds_are_announced(server, capsys):
    empty = pd.DataFrame({"layer": [], "neuron": [], "rank": []}, dtype="int64")
    texts = pd.DataFrame({"text": [0], "language": ["hi"], "document": [3], "pieces": [["नम", "स्ते"]], "cut": [False]})
    examples = empty.assign(language="", kind="top", activation=0.0, text=0, values=[[]] * 0)
    outputs = empty.assign(effect="promoted", token="", script="", change=0.0)
    similar = empty.assign(by="activity", other_layer=0, other_neuron=0, similarity=0.0)
    about = {"model": "m", "fingerprint": "f", "site": "act", "corpus": "c", "languages": ["hi"], "neurons": []}
    about |= {"context_length": 8, "documents": 1, "seed": 0, "gated": True}
    profiles = Profiles(texts, examples, outputs, similar, about)
    address = profiles.push_to_hub("me/profiles")
    assert "These hold texts: examples.parquet (text), texts.parquet (text, pieces)." in capsys.readouterr().err
    loaded = ln.load(address)
    assert loaded.pieces(0) == ["नम", "स्ते"]
    assert server.files("dataset", "me/profiles").keys() == {"README.md"} | {
        f"profiles/{name}"
        for name in ("examples.parquet", "outputs.parquet", "similar.parquet", "texts.parquet", "profiles.json")
    }


def test_updates_and_fine_tunings_are_models(server, babel):
    neurons = ln.NeuronSet.of({"hi": [(0, 3), (1, 2)]}, ln.models.view(babel).shape("act"), "act")
    update = ln.MaskedLoRA(neurons, rank=1)
    update.prepare(babel)
    update.push_to_hub("me/adapters", "hindi")
    Finetuned(update, None, pd.DataFrame({"step": [1], "loss": [2.0], "dev": [float("nan")]})).push_to_hub(
        "me/adapters"
    )
    files = server.files("model", "me/adapters")
    assert {"hindi/adapter_model.safetensors", "finetuned/update-0/langneurons.json", "README.md"} <= files.keys()
    loaded = ln.MaskedLoRA.load("hub:me/adapters/hindi", babel)
    tuned = ln.load("hub:me/adapters/finetuned")
    for state in (loaded.state_dict(), tuned.updates[0].state_dict()):
        assert all(torch.equal(value, state[name]) for name, value in update.state_dict().items())
    card = files["README.md"].decode()
    assert "update = ln.MaskedLoRA.load('hub:me/adapters/hindi')" in card
    assert "result = ln.load('hub:me/adapters/finetuned')" in card


def test_a_baked_checkpoint_is_a_model_that_plain_transformers_loads(server, babel, tmp_path):
    server.large = 1_000_000
    patch = ln.SetTo(ln.NeuronSet.of({"hi": [(0, 3), (1, 2)]}, ln.models.view(babel).shape("act"), "act"), 0.0)
    commit = ln.bake(babel, patch).push_to_hub("me/silent")
    files = server.files("model", "me/silent")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files.keys()
    assert list(server.uploaded.values()) == [files["model.safetensors"]]  # which is too large for a commit
    assert 'from_pretrained("me/silent")' in files["README.md"].decode()
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained("me/silent", revision=commit)(tokens).logits
        with ln.intervene(babel, patch):
            assert torch.allclose(loaded, babel(tokens), atol=1e-4)
    with pytest.raises(StorageError, match="A repository is called user/name, not 'silent'"):
        ln.bake(babel, patch).push_to_hub("silent")


def test_a_study_comes_back_done_and_without_paths_of_this_machine(server, tmp_path):
    from langneurons.study.config import parse_config

    config = {
        "name": "small",
        "models": {"babel": {"name": "babel"}},
        "text": {"source": "babel", "heldout": 0.3},
        "recording": {"context_length": 128},
        "sets": {"two": ["en", "hi"]},
        "methods": {"lape": {"method": "lape", "top": 0.01}},
    }
    study = ln.Study(parse_config(config), tmp_path / "mine")
    study.run("identify", progress=False)
    study.push_to_hub("me/studies", "small")
    files = server.files("dataset", "me/studies")
    assert not any(str(tmp_path).encode() in content for content in files.values())
    assert not any("/work/" in name for name in files)
    loaded = ln.Study.from_toml("hub:me/studies/small", out=tmp_path / "copied")
    assert loaded.files() == study.files()
    loaded.check()
    assert loaded.status()["state"].tolist() == ["done", "done", "to do"]
    assert not (loaded.path("record/babel") / "statistics.json").is_symlink()
    with pytest.raises(StorageError, match="is not empty"):
        ln.Study.from_toml("hub:me/studies/small", out=tmp_path / "copied")
    with pytest.raises(StorageError, match="Give out="):
        ln.Study.from_toml("hub:me/studies/small")


def test_what_the_hub_lacks_or_refuses_is_one_sentence(server, monkeypatch):
    NEURONS.push_to_hub("me/neurons", "lape")
    NEURONS.push_to_hub("me/neurons", "lape-2")
    for address, said in (
        ("hub:me/nothing/lape", "no repository 'me/nothing' that you may read: check the name, and log in"),
        ("hub:me/neurons/lap", "Unknown result 'lap': did you mean 'lape'"),
        ("hub:me/neurons", "holds lape, lape-2: give hub:me/neurons/name"),
        ("hub:me/neurons/lape@" + "e" * 40, "no such revision"),
        ("hub:me", "An address on the hub is hub:user/repo/name"),
        ("hub:me/a/b/c", "An address on the hub is hub:user/repo/name"),
    ):
        with pytest.raises(StorageError, match=said) as error:
            ln.load(address)
        assert "\n" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(StorageError, match="does not let you write me/mine: log in"):
        NEURONS.push_to_hub("me/mine")
    with pytest.raises(StorageError, match="no repository 'me/neurons' that you may read"):
        ln.load("hub:me/neurons/lape")


def test_offline_nothing_is_pushed_and_what_was_downloaded_is_read(server, monkeypatch):
    NEURONS.push_to_hub("me/neurons", "lape")
    assert ln.load("hub:me/neurons/lape") == NEURONS
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ln.load("hub:me/neurons/lape") == NEURONS
    with pytest.raises(StorageError, match="Nothing can be pushed to me/neurons offline: unset HF_HUB_OFFLINE"):
        NEURONS.push_to_hub("me/neurons")
    for address in ("hub:me/neurons/other", "hub:me/others/lape", "hub:me/others"):
        with pytest.raises(
            StorageError, match="not on this machine, and the hub is out of reach|holds no result"
        ) as error:
            ln.load(address)
        assert "\n" not in str(error.value)


def test_a_hub_that_does_not_answer_is_one_sentence(server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for ask in (lambda: ln.load("hub:me/neurons/lape"), lambda: NEURONS.push_to_hub("me/neurons")):
        with pytest.raises(StorageError, match="cannot be reached to (read|write) me/neurons") as error:
            ask()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("repo", ["neurons", "me/neurons/lape", "me/my neurons", ""])
def test_what_is_no_repository_is_refused_before_anything_is_written(repo):
    with pytest.raises(StorageError, match="A repository is called user/name"):
        NEURONS.push_to_hub(repo)


def test_what_is_no_name_or_no_part_of_a_card_is_refused():
    for name in ("a/b", "..", "", "a@b"):
        with pytest.raises(StorageError, match="needs a name such as 'lape'"):
            NEURONS.push_to_hub("me/neurons", name)
    with pytest.raises(StorageError, match="Unknown part of a card 'license': did you mean 'licence'"):
        NEURONS.push_to_hub("me/neurons", license="mit")


def test_a_damaged_download_is_noticed(server):
    NEURONS.push_to_hub("me/neurons", "lape")
    files = server.files("dataset", "me/neurons")
    content = json.loads(files["lape/neuron-set.json"])
    content["members"][0][1][0] += 1
    files["lape/neuron-set.json"] = json.dumps(content).encode()
    with pytest.raises(StorageError, match="checksum"):
        ln.load("hub:me/neurons/lape")


def test_the_command_pushes_what_a_folder_holds(server, tmp_path, capsys):
    path = NEURONS.save(tmp_path / "lape.json")
    assert run(["push", str(path), "me/neurons", "--name", "lape", "--licence", "mit", "--public"]) == 0
    address = capsys.readouterr().out.strip()
    assert address.startswith("hub:me/neurons/lape@")
    assert ln.load(address) == NEURONS
    assert server.private == {"me/neurons": False}
    assert "| licence | mit |" in server.files("dataset", "me/neurons")["README.md"].decode()
    (tmp_path / "langneurons.json").write_text("{}")
    assert run(["push", str(tmp_path), "me/neurons"]) == 2
    assert "holds an update: push it in Python" in capsys.readouterr().err
