import base64
import gzip
import json
import re
from dataclasses import replace

import pandas as pd
import pytest

import langneurons as ln
from langneurons.errors import NeuronSetError, StaleArtefactError, StatisticsError
from langneurons.identification.neurons import NeuronSet
from langneurons.storage.presenting import Table
from langneurons.views.findings import answers, verdicts
from langneurons.views.headline import certainty, headline
from langneurons.views.looks import colour_of, language_class
from langneurons.views.pages import (
    BINS,
    HEIGHT,
    STEP,
    neuron_page,
    page_content,
    rendered,
    shortened,
    strips,
    visible,
)
from langneurons.views.report_tables import MOST_ROWS, neuron_table, table_of
from tests.views.report import made_up


@pytest.fixture(scope="module")
def findings():
    return made_up.findings()


@pytest.fixture(scope="module")
def html(findings, tmp_path_factory):
    return ln.write_report(tmp_path_factory.mktemp("report") / "report.html", findings).read_text("utf-8")


def unpacked(html: str, name: str) -> str:
    found = re.search(rf'id="{name}">(.*?)</script>', html, re.S)
    assert found is not None
    return gzip.decompress(base64.b64decode(found[1])).decode()


def with_pages(html: str) -> str:
    """The report and all pages of neurons that it unpacks."""
    return html + "".join(json.loads(unpacked(html, "pages-0")).values())


def test_text_from_outside_is_escaped_wherever_it_stands(html):
    assert made_up.HOSTILE not in html
    assert made_up.HOSTILE not in with_pages(html)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "&lt;b&gt;bold" in html
    assert "made &lt;up&gt;" in html


def test_nothing_is_asked_of_the_network_and_only_our_script_may_run(html):
    assert not re.search(r'(src|href)="(?!#)', html)
    assert "default-src 'none'" in html
    assert len(re.findall(r"<script>", html)) == 1


def test_every_neuron_has_a_page_that_lists_link_to(findings, html):
    pages, whole = json.loads(unpacked(html, "pages-0")), with_pages(html)
    assert sorted(pages) == sorted(f"L{layer}N{index}" for layer, index in findings.profiles.neurons)
    for anchor, page in pages.items():
        assert page.count(f'id="{anchor}"') == 1
        assert f'href="#{anchor}"' in html
    for target in set(re.findall(r'href="#([^"]+)"', whole)):
        assert f'id="{target}"' in whole, target


def test_the_index_of_neurons_has_each_with_its_languages_and_tokens_by_language(findings, html):
    index = json.loads(unpacked(html, "neurons-index"))
    assert [row[1] for row in index] == sorted(row[1] for row in index)
    assert len(index) == len(findings.profiles)
    assert all(row[3].startswith("␣the") and row[4] == 0 for row in index)
    first = re.search(r'id="neuron-page">.*?id="(L\d+N\d+)"', html, re.S)
    assert first is not None
    assert first[1] == index[0][0]


def test_the_first_screen_has_question_answer_figure_and_how_sure_it_is(html):
    screen = re.search(r'<section aria-label="Answer".*?</section>', html, re.S)[0]
    answer, rest = screen.split("<h2", 1)
    assert answer.count("<p dir") == 3
    assert (
        "makes its own loss significantly worse in 3 of 3 languages, and that of another language in 0 of 6" in answer
    )
    assert "How sure" in rest
    assert "9 effects judged together (Holm), each over 40 items in 20 clusters" in rest
    assert "No controls were drawn" in rest
    assert rest.count("data-figure") == 1
    assert "Change of each language" in rest


def test_given_sentences_answer_first(findings):
    given = replace(findings, answer=["Hindi's do."], sure=["Six seeds."])
    assert headline(given)[0] == "Hindi's do."
    assert len(headline(given)) == 3
    assert certainty(given)[0] == "Six seeds."


def test_captions_hold_no_options_which_stand_in_provenance(tmp_path, stats_of_lape):
    stats, neurons = stats_of_lape
    html = ln.write_report(tmp_path / "r.html", ln.Findings("Q?", stats=stats, neurons={"LAPE": neurons})).read_text()
    captions = " ".join(re.findall(r"<figcaption>.*?</figcaption>|<caption>.*?</caption>", html, re.S))
    assert "filter_quantile" not in captions
    provenance = html.split('id="made-from"')[1]
    assert "filter_quantile" in provenance
    assert "In which layers each language" in provenance


@pytest.fixture(scope="module")
def stats_of_lape():
    stats = made_up.statistics()
    return stats, ln.LAPE(top=0.1).identify(stats)


def test_a_language_has_one_colour_in_figures_tables_and_pages(findings, html):
    for language in made_up.PIECES:
        named = language_class(language)
        assert f'<span class="lang {named}">{language}</span>' in html
        assert f'<dt class="{named}" data-language="{language}">' in html
        assert f".{named} {{ --own: {colour_of(language)}; }}" in html
    neurons = findings.neurons["made <up>"]
    bars = {trace.meta: trace.marker.color for trace in ln.plot.layer_profile(neurons).data}
    assert bars == {language: colour_of(language) for language in sorted(made_up.PIECES)}
    lines = {trace.meta: trace.line.color for trace in ln.plot.histogram(findings.stats, (0, 1)).data}
    assert lines == bars


def test_ids_are_unique(html):
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_all_texts_are_carried_with_a_level_for_each_whole_character(html):
    carried = json.loads(unpacked(html, "texts"))
    assert carried["texts"]["0"][0] == made_up.HOSTILE
    assert "न्दी" in "".join(carried["texts"]["1"])
    for example in carried["examples"].values():
        for language, kind, _, text, levels in example["rows"]:
            assert kind in "tmr"
            assert len(levels) == len(carried["texts"][str(text)])
            assert language in made_up.PIECES
            assert max(map(ord, levels)) == 78 + 30


def test_plotly_is_carried_once_and_compressed(html):
    assert "plotly.js" in unpacked(html, "plotly")[:2000]
    assert len(re.search(r'id="plotly">(.*?)</script>', html, re.S)[1]) < 2_100_000


def test_two_hundred_neurons_fit_in_five_megabytes_and_a_page_in_ten_kilobytes():
    big = made_up.findings(count=120)
    neurons = big.profiles.neurons
    pages = [neuron_page(big.profiles, one, big.stats) for one in neurons[:3]]
    assert all(page.body for page in pages)
    sizes = [len(rendered(page_content(big.profiles, one, big.beside_profiles), True).encode()) for one in neurons]
    assert max(sizes) < 10_000


def test_a_report_without_figures_carries_no_plotly(findings, tmp_path):
    only = ln.Findings("Q?", profiles=findings.profiles)
    path = ln.write_report(tmp_path / "r.html", only)
    assert 'id="plotly"' not in path.read_text("utf-8")
    assert path.stat().st_size < 200_000


def test_the_answer_says_what_was_found_and_what_could_not_be_seen(findings):
    said = " ".join(answers(findings))
    assert re.search(r"worse in 3 of 3 \(.*en → en \+\d", said)
    assert "no significant change in 6 effects" in said
    assert "all shown to lie within ±1 %" in said
    assert "Ablation (each neuron alone set to 0; nll): " in said


def test_not_significant_is_never_called_no_effect():
    unsure = made_up.matrix(own=0.0, noise=1.0)
    said = verdicts(unsure.rows, unsure)
    assert "9 inconclusive (smaller than" in said
    assert "within" not in said


def test_nothing_to_report_and_what_does_not_belong_together_are_refused(findings, tmp_path):
    with pytest.raises(StatisticsError, match="nothing to report"):
        ln.write_report(tmp_path / "r.html", ln.Findings("Q?"))
    foreign = NeuronSet(findings.neurons["made <up>"].members, made_up.SHAPE, "act", "0" * 32)
    for given in (replace(findings, neurons={"x": foreign}), replace(findings, neurons={"x": foreign}, profiles=None)):
        with pytest.raises(StaleArtefactError, match="belong"):
            ln.write_report(tmp_path / "r.html", given)
    assert not (tmp_path / "r.html").exists()


def test_a_long_list_keeps_the_neurons_that_have_pages(findings):
    shape = (3, 2000)
    many = NeuronSet.of({"en": [(layer, unit) for layer in range(3) for unit in range(1500)]}, shape, "act")
    table = neuron_table({"many": many}, None, replace(findings.profiles, settings=findings.profiles.settings))
    assert len(table.rows) == MOST_ROWS
    linked = {cell.link for row in table.rows for cell in row.cells if cell.link}
    assert linked == {f"L{layer}N{unit}" for layer, unit in findings.profiles.neurons}
    assert "2,000 of 4,500" in table.caption


def test_tables_show_missing_values_as_a_dash():
    frame = pd.DataFrame({"word": ["a", None], "share": [0.5, None], "verdict": ["worse", "better"]})
    table = table_of(Table(frame), "t", "T")
    assert [[cell.text for cell in row.cells] for row in table.rows] == [["a", "0.5", "worse"], ["–", "–", "better"]]
    assert [cell.verdict for cell in table.rows[0].cells] == [False, False, True]


def test_numbers_are_printed_in_the_unit_of_the_text_and_what_is_missing_is_no_number(findings, tmp_path):
    row = {"language": "all", "selectivity": 0.003051, "low": 0.0021, "high": 0.004, "control_mean": 0.0002}
    selectivity = pd.DataFrame([row | {"control_low": float("nan"), "control_high": None, "control_p": float("nan")}])
    matrix = replace(findings.matrix, selectivity=selectivity)
    html = ln.write_report(tmp_path / "r.html", replace(findings, matrix=matrix)).read_text("utf-8")
    table = re.search(r'<table class="data" id="selectivity">.*?</table>', html, re.S)[0]
    assert "selectivity (points)" in table
    bare = re.sub(r"</?span[^>]*>", "", table)
    assert [cell for cell in re.findall(r"<td[^>]*>([^<]*)", bare)] == ["all", "+0.305 [+0.21, +0.4]", "+0.02"]
    assert "changes more than the others': by +0.305 [+0.21, +0.4] points on average" in html.replace("&#39;", "'")
    cells = re.findall(r"<td[^>]*>([^<]*)", html)
    assert not [cell for cell in cells if re.search(r"\bnan\b|none", cell, re.I)]


def test_a_caption_that_stands_under_the_figure_is_not_repeated(html):
    shown = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert shown.count("Family: made up: 9 effects (Holm).") == 1


def test_empty_columns_are_left_out():
    table = table_of(Table(pd.DataFrame({"condition": ["none"], "target": [""], "p": [None]})), "t", "T")
    assert [column.text for column in table.columns] == ["condition"]


def test_a_neuron_page_reads_alone_and_is_safe(findings, tmp_path):
    neuron = findings.profiles.neurons[0]
    page = neuron_page(findings.profiles, neuron, findings.stats, None, findings.ablation, findings.neurons)
    shown = page._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert 'dir="auto"' in shown
    assert "U+0007" in shown
    assert "each neuron alone set to 0" in shown
    assert ".ln-neuron" in shown
    assert "planted &lt;model&gt;" in page.save(tmp_path / "page.html").read_text("utf-8")


def test_a_page_shows_what_there_is(findings):
    alone = neuron_page(findings.profiles, findings.profiles.neurons[0])
    assert "<svg" not in alone.body
    counts = ln.ActivationStats.from_counts(
        (findings.stats.probability() * 1000).long(), findings.stats.tokens * 0 + 1000, findings.stats.languages
    )
    assert "active, %" in neuron_page(findings.profiles, findings.profiles.neurons[0], counts).body


def test_a_page_refuses_strangers(findings):
    with pytest.raises(NeuronSetError, match="hold no neuron"):
        neuron_page(findings.profiles, (2, 39))
    other = replace(findings.ablation, settings={**findings.ablation.settings, "site": "post"})
    with pytest.raises(StaleArtefactError, match="ablation of 'post'"):
        neuron_page(findings.profiles, findings.profiles.neurons[0], ablation=other)


def test_strips_share_their_axes_and_have_equal_areas(findings):
    found = strips(findings.stats, (1, 2))
    areas = {}
    for language, path in found.paths.items():
        tops = [int(top) for top in re.findall(r"V(\d+)h", path)]
        assert len(tops) == BINS
        areas[language] = STEP * sum(HEIGHT - top for top in tops)
    assert max(areas.values()) - min(areas.values()) < 0.15 * max(areas.values())
    medians = [found.quantiles[language][1] for language in made_up.PIECES]
    assert [round(median) for median in medians] == [-1, 0, 1]


def test_invisible_characters_and_long_texts_are_shown_shortly():
    assert visible("a\u00ad\n") == "aU+00AD⏎"
    assert shortened("one two three", 8, end=True) == "one two…"
    assert shortened("中文" * 20, 5, end=False) == "…文中文中文"
