"""The one table of benchmarks: every number that is to be held stands in it, and verdicts follow from the numbers."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import demo
from benchmarks.__main__ import MODULES, main, parsed
from benchmarks.measuring import Settings, medians
from benchmarks.rows import HEADER, Row

ROOT = Path(__file__).parents[1]
# What DESIGN holds numbers to, each as the beginning of a row and its hold; the demo is measured only when asked.
HELD = {
    r"record\(\), all statistics, babel": "<= 1.2 x",
    r"record\(\), all statistics, 44M HookedTransformer": "<= 1.08 x",
    r"record\(\), all statistics, SmolLM2-135M's shape, HookedTransformer": "<= 1.05 x",
    r"record\(\), all statistics, 44M Bridge": "<= 1.05 x",
    r"the paper's way .*, 44M HookedTransformer": ">= 10 x",
    r"the paper's way .*, 44M Bridge": ">= 15 x",
    r"the same, one vectorised torch.quantile call, 44M HookedTransformer": ">= 3 x",
    r"the same, one vectorised torch.quantile call, 44M Bridge": ">= 3 x",
    r"record\(\), peak memory, babel": "0.95 to 1.05 x",
    r"statistics on disk": "<= 800 bytes",
    r"HookedTransformer forward, 44M, 2 x \d+ ": "<= 1.1 x",
    r"HookedTransformer forward, SmolLM2-135M's shape, 2 x \d+ ": "<= 1.1 x",
    r"HookedTransformer forward, beside TransformerLens', 44M, 1 x \d+ ": "<= 0.7 x",
    r"HookedTransformer forward, beside TransformerLens', 44M, 2 x \d+ ": "<= 1 x",
    r"HookedTransformer forward, beside TransformerLens', SmolLM2-135M's shape, 1 x \d+ ": "<= 0.7 x",
    r"HookedTransformer forward, beside TransformerLens', SmolLM2-135M's shape, 2 x \d+ ": "<= 1 x",
    r"HookedTransformer forward, .* largest difference of a logit": "<= 1 hundred-thousandths of a standard deviation",
    r"intervene\(SetTo\) on 1 % of neurons, 44M HookedTransformer, 1 x": "<= 1.05 x",
    r"intervene\(SetTo\) on 1 % of neurons, 44M HookedTransformer, 2 x": "<= 1.05 x",
    r"intervene\(SetTo\) on 1 % of neurons, 44M Bridge, 1 x": "<= 1.05 x",
    r"intervene\(SetTo\) on 1 % of neurons, 44M Bridge, 2 x": "<= 1.05 x",
    r"ablate, a neuron, 44M HookedTransformer, layer 0": "<= 1.25 x",
    r"ablate, a neuron, 44M Bridge, layer 1": "<= 1.25 x",
    r"step of MaskedLoRA, Bridge with native attention, 1 % of neurons": "<= 1.1 x",
    r"memory of MaskedLoRA, Bridge with native attention, 1 % of neurons": "<= 1 x",
    r"likelihoods, three labels .*, HookedTransformer": "<= 1.15 x",
    r"likelihoods, two endings .*, Bridge": "<= 1.15 x",
    r"greedy answers, stop strings, .*, HookedTransformer": "<= 1.1 x",
    r"greedy answers, stop strings, .*, Bridge": "<= 1.1 x",
    r"next-token step of finetune\(MaskedRows\), Bridge, 1 % of neurons": "<= 1 x",
    r"memory of a next-token step of finetune\(MaskedRows\), Bridge, 1 % of neurons": "<= 0.9 x",
    r"LAPE, .*first call": "<= 2 s",
    r"five set operations": "<= 50 ms",
    r"`import langneurons`": "<= 1 s",
    r"report for 5 neurons": "<= 5 MB",
    r"its largest page of a neuron": "<= 10 KB",
    r"record\(\), all statistics, 8B-shape HookedTransformer": "<= 1.15 x",
    r"record\(\), all statistics, 8B-shape Bridge": "<= 1.05 x",
    r"intervene\(SetTo\) on 1 % of neurons, 8B-shape Bridge": "<= 1.05 x",
    r"the paper's way .*, 8B-shape HookedTransformer": ">= 10 x",
}


def run(*options: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *options], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture(scope="module")
def table() -> list[list[str]]:
    done = run("--tiny", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(HEADER) == 1
    return [cells(line) for line in done.stdout.partition(HEADER)[2].strip().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "hold"), HELD.items())
def test_every_number_to_be_held_stands_in_the_table_with_its_hold(table, what, hold):
    found = [row for row in table if re.match(what, row[0] + " ")]
    assert found
    assert {row[2] for row in found} == {hold}


@pytest.mark.slow
def test_every_row_has_a_finite_number_and_its_verdict_follows_from_it(table):
    assert {row[4] for row in table} == {"held", "falls short", ""}
    for what, _, hold, measured, verdict in table:
        number = float(measured.split()[0].replace(",", ""))
        assert math.isfinite(number), what
        bounds = [float(bound) for bound in re.findall(r"[\d.]+", hold)]
        low = bounds[0] if ">=" in hold or " to " in hold else -math.inf
        high = bounds[-1] if "<=" in hold or " to " in hold else math.inf
        expected = "held" if low <= number <= high else "falls short"
        assert verdict == (expected if hold else ""), what


@pytest.mark.slow
def test_the_gpu_rows_say_speed_limit_and_memory(table):
    of_gpu = [row for row in table if "8B-shape" in row[0] or "matrix product" in row[0]]
    units = {re.sub(r" \(.*", "", row[3]).split()[1] for row in of_gpu}
    assert units == {"TFLOP/s", "tokens/s", "x", "MB"}
    assert any(row[1] == "the device's bfloat16 matrix product" for row in of_gpu)


@pytest.mark.parametrize(
    ("measured", "at_most", "at_least", "verdict"),
    [
        (1.15, 1.15, None, "held"),
        (1.151, 1.15, None, "falls short"),
        (10.0, None, 10.0, "held"),
        (9.99, None, 10.0, "falls short"),
        (1.15001, 1.15, None, "held"),
        (1.0, 1.05, 0.95, "held"),
        (0.94, 1.05, 0.95, "falls short"),
        (1.06, 1.05, 0.95, "falls short"),
        (0.0, 0.0, None, "held"),
        (math.nan, 1.0, None, "falls short"),
        (math.nan, None, 1.0, "falls short"),
        (7.0, None, None, ""),
    ],
)
def test_a_verdict_follows_from_the_number_and_what_it_is_held_to(measured, at_most, at_least, verdict):
    assert Row("what", "base", measured, at_most=at_most, at_least=at_least).verdict == verdict


def test_a_row_is_a_line_of_the_table():
    row = Row("a patch", "none", 1.0516, at_most=1.05, detail="3 ms")
    assert str(row) == "| a patch | none | <= 1.05 x | 1.052 x (3 ms) | falls short |"
    assert cells(str(Row("speed", "", 12345.6, "tokens/s"))) == ["speed", "", "", "12,346 tokens/s", ""]


def test_medians_are_of_each_way_by_itself_and_leave_the_first_round_out(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr("benchmarks.measuring.time.perf_counter", lambda: now[0])

    def way(name: str, costs: list[float]):
        def called() -> None:
            calls.append(name)
            now[0] += costs.pop(0)

        return called

    taken = medians({"a": way("a", [100, 1, 3, 2]), "b": way("b", [100, 30, 10, 20])}, 3)
    assert taken == {"a": 2, "b": 20}
    assert calls == ["a", "b"] * 4


def test_what_is_measured_apart_has_a_process_of_its_own():
    first, second = (Settings().apart(os.getpid) for _ in range(2))
    assert len({first, second, os.getpid()}) == 3
    assert Settings(tiny=True).apart(os.getpid) == os.getpid()


def test_only_the_modules_asked_for_are_measured(capsys):
    main(["--only", "identification", "--tiny"])
    said, errors = capsys.readouterr()
    assert [cells(line)[0].split(",")[0] for line in said.partition(HEADER)[2].strip().splitlines()] == [
        "LAPE",
        "LAPE",
        "five set operations on the result",
    ]
    assert errors == "measuring identification\n"
    assert "Not measured: record, forward," in said


def test_the_demo_and_a_processor_in_place_of_a_gpu_are_measured_only_when_asked(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert set(MODULES) - set(parsed([])[0]) == {"demo", "gpu"}
    assert set(MODULES) - set(parsed(["--with-demo"])[0]) == {"gpu"}
    assert set(MODULES) - set(parsed(["--tiny", "--device", "cpu"])[0]) == {"demo"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    names, settings = parsed(["--rounds", "3"])
    assert set(MODULES) - set(names) == {"demo"}
    assert (settings.rounds, settings.device) == (3, "cuda")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--only", "record,nothing"], "given nothing"),
        (["--rounds", "0"], "at least 1, given 0"),
        (["--device", "cpu"], "is for --tiny"),
        (["--only", "gpu"], "gpu needs a GPU"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_what_is_possible(given, said, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        parsed(given)
    assert said in capsys.readouterr().err


def test_the_demo_is_timed_whole_and_held_to_three_minutes(monkeypatch):
    monkeypatch.setattr(demo, "COMMAND", (sys.executable, "-c", "import sys; assert sys.argv[1].endswith('/demo')"))
    (row,) = demo.rows(Settings())
    assert (row.hold, row.verdict, row.unit) == ("<= 180 s", "held", "s")
    assert 0 < row.measured < 180
    monkeypatch.setattr(demo, "COMMAND", (sys.executable, "-c", "raise SystemExit(1)"))
    with pytest.raises(subprocess.CalledProcessError):
        list(demo.rows(Settings()))
