"""One small artefact of every kind that langneurons reads, and how it is read to the last number."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import langneurons as ln
from langneurons import storage
from langneurons.analysis.comparison import Comparison
from langneurons.analysis.validity.checks import ValidityTable
from langneurons.cli.measuring import labelled_texts
from langneurons.corpora import PackedCorpus, pack
from langneurons.models.checkpoints import load_tokenizer
from langneurons.models.dictionaries import SparseDictionary, SparseDictionaryConfig
from langneurons.recording.passes import PLAN, RecordingFolder
from langneurons.recording.sums import LanguageSums
from langneurons.replication.statistics import ARRAYS, PublishedStatistics
from langneurons.study.config import read_config
from langneurons.tasks.likelihood import read_templates
from langneurons.tasks.xquad import read_prompts
from langneurons.training.resuming import RunFolder
from tests.planted.transfer import simulated
from tests.robustness import results
from tests.tiny_models import tiny_config, tiny_model, tiny_tokenizer
from tests.training.small import pairs
from tests.views.report import made_up

LANGUAGES = ("en", "hi")
DOCUMENTS = {language: [f"w{n} w{n + 1} w{n + 2} w{n + 3}" for n in range(3, 60)] for language in LANGUAGES}
TABLE = pd.DataFrame({"item": range(6), "cluster": [0, 0, 1, 1, 2, 2], "value": np.linspace(0, 1, 6), "text": "a b"})


@dataclass(frozen=True)
class Artefact:
    """A kind of artefact.

    Attributes:
        make: Writes a valid one into a folder.
        read: Reads it.
        plain: Whether it is a file of people or other programs without a checksum: then a change that leaves it well
            formed cannot be noticed, and any result is legal; of all others only an equal one is.
        share: How many mutations it gets, relative to others: loading a model takes long.
    """

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    plain: bool = False
    share: float = 1.0


def described(value: Any) -> str:
    """A hash of everything that a result holds, to the last bit."""
    return storage.fingerprint(repr(_parts(value)))


def _parts(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), _parts(value.detach().float().numpy())
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, storage.fingerprint(value.tobytes())
    if isinstance(value, pd.DataFrame):
        return list(value.columns), [(str(value[name].dtype), value[name].tolist()) for name in value.columns]
    if isinstance(value, nn.Module):
        return _parts(value.state_dict())
    if isinstance(value, Mapping):
        return [(key, _parts(one)) for key, one in value.items()]
    if dataclasses.is_dataclass(value):
        return [_parts(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        return [_parts(one) for one in value]
    return value


@cache
def model() -> Any:
    """A tiny model; it is loaded once."""
    return ln.load_model(_model_folder(Path(mkdtemp(prefix="langneurons-tiny-"))), backend="hooked")


def _model_folder(folder: Path) -> Path:
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _read_model(folder: Path) -> Any:
    return ln.load_model(folder, backend="hooked").state_dict()


def _make_tokenizer(folder: Path) -> None:
    tiny_config("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def _read_tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)("w3 w4 w5")["input_ids"]


def _lora() -> ln.MaskedLoRA:
    neurons = ln.NeuronSet.of({"hi": [(0, 3), (1, 2), (1, 7)]}, (2, 48), "act", model_fingerprint())
    lora = ln.MaskedLoRA(neurons, rank=2, targets=("gate", "down"), attention=("q",))
    lora.prepare(model())
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.copy_(torch.arange(1.0, parameter.numel() + 1).reshape(parameter.shape))
    return lora


def model_fingerprint() -> str:
    return ln.models.view(model()).fingerprint


def _update(folder: Path) -> Any:
    lora = ln.MaskedLoRA.load(folder)
    return lora.neurons.members, lora.rank, lora.alpha, lora.targets, lora.attention, lora.state_dict()


def _make_peft(folder: Path) -> None:
    _lora().save(folder)
    for name in ("langneurons.json", "neurons.json", "parameters.safetensors"):
        (folder / name).unlink()


def _read_peft(folder: Path) -> Any:
    lora = ln.MaskedLoRA.load(folder, model())
    return lora.neurons.members, lora.state_dict()


def _finetuned() -> Any:
    return ln.finetune(model(), pairs(6), update=_lora(), epochs=1, batch_size=3, learning_rate=1e-3, progress=False)


def _read_finetuned(folder: Path) -> Any:
    found = ln.training.Finetuned.load(folder)
    return found.update.state_dict(), found.head, found.history, found.about


def _read_head(folder: Path) -> Any:
    head = ln.tasks.ClassificationHead.load(folder)
    return head.weight, head.bias, head.labels, head.model


def _make_packed(folder: Path) -> None:
    pack(ln.load_corpus(DOCUMENTS), ln.models.view(model()).tokenizer, 16, folder)


def _read_packed(folder: Path) -> Any:
    packed = PackedCorpus.open(folder)
    every = {name: packed.blocks(name, range(packed.n_blocks(name))) for name in packed.languages}
    alone = {name: packed.texts(name, range(of.texts)) for name, of in packed.about.items()}
    return every, alone, packed.format, packed.about, packed.tokens, packed.made_from


def _sums() -> LanguageSums:
    stats = ln.record(model(), ln.load_corpus(DOCUMENTS), context_length=16, progress=False)
    seen = ln.models.view(model())
    return LanguageSums.empty(seen, {"act": stats.records["act"]["en"].grid()}, 100, next_block=3)


def _make_recording(folder: Path) -> None:
    RecordingFolder(folder, True).claim({"sites": ["act"], "context_length": 16, "model": "m"})
    RecordingFolder(folder, True).save("en", _sums())


def _read_recording(folder: Path) -> Any:
    run = RecordingFolder(folder, True)
    run.claim({"sites": ["act"], "context_length": 16, "model": "m"})
    kept = run.load("en", ("act",), torch.device("cpu"))
    return storage.read_json(folder / "recording.json", PLAN), None if kept is None else kept.tensors()


def _make_finetuning(folder: Path) -> None:
    RunFolder(folder, {"epochs": 3, "task": "t"}).save({"w": torch.arange(6.0)}, {"step": 3})


def _read_finetuning(folder: Path) -> Any:
    tensors, about = RunFolder(folder, {"epochs": 3, "task": "t"}).load() or ({}, {"step": None})
    return tensors, about.get("step")


def _make_texts(folder: Path, ending: str) -> None:
    for language, documents in DOCUMENTS.items():
        file = folder / f"{language}.{ending}"
        if ending == "parquet":
            pd.DataFrame({"text": documents, "n": range(len(documents))}).to_parquet(file)
        else:
            lines = documents if ending == "txt" else [json.dumps({"text": one}) for one in documents]
            file.write_text("\n".join(lines))


def _read_texts(folder: Path) -> Any:
    return {language: table["text"] for language, table in ln.load_corpus(folder).tables.items()}


def _make_xnli(folder: Path, ending: str) -> None:
    for language, table in pairs(9).items.items():
        part = table[["premise", "hypothesis", "label"]]
        if ending == "tsv":
            (folder / f"test-{language}.tsv").write_text(part.to_csv(sep="\t", index=False))
        else:
            part.to_parquet(folder / f"test-{language}.parquet")


def _read_xnli(folder: Path) -> Any:
    return ln.XNLI.load(folder, LANGUAGES).items


def _squad() -> dict[str, Any]:
    def article(number: int) -> dict[str, Any]:
        title, last = f"T{number}", f"w{11 + number}"
        places = {"w1": 0, "w7": 9, last: 15}
        questions = [
            {"id": f"{title} {text}", "question": f"w{start}", "answers": [{"text": text, "answer_start": start}]}
            for text, start in places.items()
        ]
        return {"title": title, "paragraphs": [{"context": f"w1 w3 w5 w7 w9 {last}", "qas": questions}]}

    return {"data": [article(number) for number in range(3)]}


def _make_xquad(folder: Path, ending: str) -> None:
    rows = [
        {"id": str(n), "context": "w1 w3 w5", "question": f"w{n}", "answers": {"text": ["w3"], "answer_start": [3]}}
        for n in range(4)
    ]
    for language in LANGUAGES:
        if ending == "json":
            (folder / f"xquad.{language}.json").write_text(json.dumps(_squad()))
        else:
            pd.DataFrame(rows).to_parquet(folder / f"{language}.parquet")


def _read_xquad(folder: Path) -> Any:
    return ln.XQuAD.load(folder, LANGUAGES).items


def _make_templates(folder: Path) -> None:
    words = 'entailment = "yes"\nneutral = "maybe"\ncontradiction = "no"\n'
    text = "".join(f'[[{one}]]\ntext = "{{premise}} {{hypothesis}}? {{label}}"\n{words}' for one in LANGUAGES)
    (folder / "templates.toml").write_text(text)
    (folder / "prompts.toml").write_text('en = "{context} {question}"\nhi = "{question} {context}"\n')


def _read_templates(folder: Path) -> Any:
    return read_templates(folder / "templates.toml"), read_prompts(folder / "prompts.toml")


def _make_study(folder: Path) -> None:
    text = (Path(__file__).parents[2] / "studies" / "demo.toml").read_text("utf-8")
    (folder / "study.toml").write_text(text, "utf-8")


def _make_pth(folder: Path) -> None:
    masks = [[torch.tensor([1, 5, 7]), torch.tensor([2])], [torch.tensor([3]), torch.tensor([], dtype=torch.int64)]]
    torch.save(masks, folder / "mask.pth")


def _read_pth(folder: Path) -> Any:
    return ln.NeuronSet.from_rucaibox(folder / "mask.pth", ["en", "hi"], shape=(2, 48)).members


def _make_neuron_table(folder: Path) -> None:
    storage.write_table(folder / "neurons.parquet", made_up.neuron_set().to_dataframe())


def _read_neuron_table(folder: Path) -> Any:
    table = storage.read_table(folder / "neurons.parquet", foreign=True)
    return ln.NeuronSet.from_dataframe(table, (3, 40), "act").members


def _published(folder: Path) -> None:
    arrays = {name: torch.full((2, 2, 4), float(place)) for place, name in enumerate(ARRAYS)}
    PublishedStatistics(LANGUAGES, "m", {"tokens": 5}, **arrays).save(folder)


def _dictionary(folder: Path) -> None:
    cfg = SparseDictionaryConfig(d_in=4, d_sae=8, architecture="topk", hook_name="blocks.0.hook_resid_post", k=2)
    torch.manual_seed(0)
    SparseDictionary(cfg).save(folder)


def _labelled_texts(folder: Path) -> None:
    TABLE.assign(language="en", label=["a", "b"] * 3).drop(columns="value").to_parquet(folder / "texts.parquet")


ARTEFACTS: dict[str, Artefact] = {
    "statistics": Artefact(lambda f: made_up.statistics().save(f), ln.ActivationStats.load),
    "statistics of the paper": Artefact(_published, PublishedStatistics.load),
    "neuron set": Artefact(
        lambda f: made_up.neuron_set().save(f / "n.json"), lambda f: ln.NeuronSet.load(f / "n.json")
    ),
    "neuron table": Artefact(_make_neuron_table, _read_neuron_table, plain=True),
    "published mask": Artefact(_make_pth, _read_pth),
    "effect table": Artefact(lambda f: made_up.matrix().save(f), ln.effects.EffectTable.load),
    "evaluation": Artefact(
        lambda f: results.evaluation().save(f),
        ln.evaluation.Evaluation.load,
    ),
    "transfer": Artefact(
        lambda f: simulated({"none": 0.0, "source": 0.1}, seeds=2, clusters=4).save(f), ln.training.Transfer.load
    ),
    "ablation": Artefact(lambda f: made_up.ablation(made_up.neuron_set(3)).save(f), ln.analysis.Ablation.load),
    "polysemanticity": Artefact(lambda f: results.polysemanticity().save(f), ln.analysis.Polysemanticity.load),
    "profiles": Artefact(lambda f: made_up.profiles(made_up.neuron_set(3)).save(f), ln.analysis.Profiles.load),
    "comparison": Artefact(lambda f: results.comparison().save(f), Comparison.load),
    "validity table": Artefact(lambda f: results.validity().save(f), ValidityTable.load),
    "head": Artefact(
        lambda f: ln.tasks.ClassificationHead(torch.eye(3, 32), torch.ones(3), ("a", "b", "c"), "m").save(f), _read_head
    ),
    "masked update": Artefact(lambda f: _lora().save(f), _update),
    "fine-tuned": Artefact(lambda f: _finetuned().save(f), _read_finetuned),
    "peft adapter": Artefact(_make_peft, _read_peft, plain=True),
    "sparse dictionary": Artefact(_dictionary, SparseDictionary.load),
    "packed corpus": Artefact(_make_packed, _read_packed),
    "half a recording": Artefact(_make_recording, _read_recording),
    "half a fine-tuning": Artefact(_make_finetuning, _read_finetuning),
    "kept rows": Artefact(
        lambda f: storage.write_table(f / "r.parquet", TABLE, sidecar=True),
        lambda f: storage.read_table(f / "r.parquet"),
    ),
    "texts, txt": Artefact(lambda f: _make_texts(f, "txt"), _read_texts, plain=True, share=0.5),
    "texts, jsonl": Artefact(lambda f: _make_texts(f, "jsonl"), _read_texts, plain=True, share=0.5),
    "texts, parquet": Artefact(lambda f: _make_texts(f, "parquet"), _read_texts, plain=True, share=0.5),
    "XNLI, tsv": Artefact(lambda f: _make_xnli(f, "tsv"), _read_xnli, plain=True),
    "XNLI, parquet": Artefact(lambda f: _make_xnli(f, "parquet"), _read_xnli, plain=True),
    "XQuAD, json": Artefact(lambda f: _make_xquad(f, "json"), _read_xquad, plain=True),
    "XQuAD, parquet": Artefact(lambda f: _make_xquad(f, "parquet"), _read_xquad, plain=True),
    "labelled texts": Artefact(_labelled_texts, lambda f: labelled_texts(f / "texts.parquet").items, plain=True),
    "templates": Artefact(_make_templates, _read_templates, plain=True),
    "study": Artefact(_make_study, lambda f: repr(read_config(f / "study.toml")), plain=True),
    "model": Artefact(lambda f: _model_folder(f), _read_model, plain=True, share=0.3),
    "tokenizer": Artefact(_make_tokenizer, _read_tokenizer, plain=True, share=0.5),
}
