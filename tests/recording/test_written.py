"""What neurons hand to their output weights, |act x up| on gated MLPs, is summed beside their activation."""

from dataclasses import replace

import pytest
import torch

import langneurons as ln
from langneurons.errors import LangNeuronsWarning
from langneurons.models import view
from tests.recording.conftest import LANGUAGES, record, same
from tests.recording.test_caches_and_looking import packed_caches
from tests.tiny_models import save_tiny


def test_a_recording_at_act_knows_what_a_recording_at_post_knows(tiny, corpus, whole):
    at_post = record(tiny, corpus, sites=("post",))
    for language in LANGUAGES:
        expected = at_post[language].mean_magnitude().values.double() * at_post.output_norm().double()
        assert torch.allclose(whole.write(language), expected, rtol=1e-5)
        assert not torch.allclose(whole.write(language), whole.mean_magnitude()[0].double() * whole.output_norm(), 0.01)


def test_up_is_recorded_with_act_and_knows_the_same_of_what_is_written(tiny, corpus, whole):
    both = record(tiny, corpus, sites=("up", "act"))
    assert same(both.at("act"), whole)
    for language in LANGUAGES:
        assert torch.allclose(both.at("up").write(language), whole.write(language), rtol=1e-3)


def test_plain_mlps_write_their_activation(tmp_path, corpus):
    model = ln.load_model(str(save_tiny(tmp_path / "gpt2", "gpt2")))
    stats = record(model, corpus)
    expected = stats["en"].mean_magnitude().values.double() * stats.output_norm().double()
    assert torch.allclose(stats.write("en"), expected)
    assert "written" not in stats.records["act"]["en"].tensors


def test_what_is_written_is_summed_exactly_whatever_the_shards_and_batches(tiny, corpus, whole):
    parts = [record(tiny, corpus, shard=(part, 3), batch_size=part + 1) for part in range(3)]
    assert same(parts[0] + parts[1] + parts[2], whole)
    assert int(whole.records["act"]["hi"].tensors["written"].min()) >= 0


def test_what_is_written_survives_saving_and_caches_give_it_too(tiny, corpus, whole, tmp_path):
    whole.save(tmp_path / "stats")
    assert torch.equal(ln.load(tmp_path / "stats").write("hi"), whole.write("hi"))
    of_caches = ln.recording.record_caches(tiny, packed_caches(tiny, corpus, tmp_path / "packed"), like=whole)
    assert torch.allclose(of_caches.write("hi"), whole.write("hi"), rtol=1e-5)


def test_caches_without_post_and_statistics_of_version_0_1_say_that_up_is_missing(tiny, corpus, whole, tmp_path):
    hook = view(tiny)._layers[0].point("pre").name.replace("blocks.0.", "")
    caches = packed_caches(tiny, corpus, tmp_path, names_filter=lambda name: name.endswith(hook))
    of_caches = ln.recording.record_caches(tiny, caches)
    records = whole.records["act"]
    old = {
        language: replace(record, tensors={n: t for n, t in record.tensors.items() if n != "written"})
        for language, record in records.items()
    }
    for stats in (of_caches, replace(whole, records={"act": old})):
        with pytest.warns(LangNeuronsWarning, match="Record them again"):
            values = stats.write("en")
        assert torch.allclose(values, stats["en"].mean_magnitude().values.double() * stats.output_norm().double())
    merged = replace(whole, records={"act": old}).select(["en"]) + replace(whole, records={"act": old}).select(["hi"])
    assert "written" not in merged.records["act"]["en"].tensors
