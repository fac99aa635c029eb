"""A cluster of two machines with object stores of their own: the same bytes, also when one of the machines is lost."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pandas.testing import assert_frame_equal

import langneurons as ln
from langneurons.errors import ExecutorError
from tests.recording.conftest import same
from tests.running.conftest import STATISTICS, need_ray

STORE = 100_000_000  # bytes of a machine's object store
RECORD = """
import sys, langneurons as ln
from tests.recording.conftest import documents
import torch
torch.set_num_threads(1)
model, corpus = ln.load_model(sys.argv[1]), ln.load_corpus({name: texts * 40 for name, texts in documents().items()})
executor = None if sys.argv[3] == "here" else ln.run.RayExecutor(sys.argv[3], workers=2)
ln.record(model, corpus, context_length=32, executor=executor, out=sys.argv[2], progress=False)
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cluster():
    """Two machines of one processor each; whoever computes must fetch what lies on the other."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    need_ray()
    ray, utils = (importlib.import_module(name) for name in ("ray", "ray.cluster_utils"))
    ray.shutdown()
    machines = utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False},
    )
    machines.second = machines.add_node(num_cpus=1, object_store_memory=STORE)
    yield machines
    ray.shutdown()
    machines.shutdown()


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith("."))
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def slow(model: Any, job: int) -> tuple[int, str, float]:
    """Work that says on which machine it was done, and needs a large result to be fetched from there."""
    time.sleep(0.4)
    machine = importlib.import_module("ray").get_runtime_context().get_node_id()
    return job, machine, float(torch.full((500_000,), job / 7).sum())


def test_two_machines_give_the_same_results_and_lose_nothing_when_one_is_lost(cluster, tiny, corpus, tmp_path):
    executor = ln.run.RayExecutor(cluster.address, workers=2)
    here = ln.record(tiny, corpus, out=tmp_path / "here", **STATISTICS)
    assert same(ln.record(tiny, corpus, out=tmp_path / "there", executor=executor, **STATISTICS), here)
    assert bytes_of(tmp_path / "here") == bytes_of(tmp_path / "there")
    neurons = ln.NeuronSet.of({"en": [(0, 1), (1, 3)], "hi": [(0, 2)]}, (2, 48), "act")
    few = {"k": 1, "context_length": 16, "similar": 2, "progress": False}
    profiles = [ln.profile(tiny, neurons, corpus, executor=where, **few) for where in (None, executor)]
    assert_frame_equal(profiles[0].examples, profiles[1].examples)
    results = []
    for number, result in enumerate(executor.map(tiny, slow, range(24))):
        results.append(result)
        if number == 4:
            cluster.remove_node(cluster.second, allow_graceful=False)
    assert [job for job, _, _ in results] == list(range(24))
    assert [value for _, _, value in results] == [float(torch.full((500_000,), job / 7).sum()) for job in range(24)]
    assert len({machine for _, machine, _ in results[-4:]}) == 1


def test_a_recording_whose_cluster_was_lost_goes_on_when_it_is_called_again(cluster, folder, tmp_path):
    root = Path(__file__).parents[2]
    whole, out = tmp_path / "whole", tmp_path / "run"
    program = [sys.executable, "-c", RECORD, str(folder)]
    subprocess.run([*program, str(whole), "here"], check=True, cwd=root)
    impatient = os.environ | {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}  # instead of a minute
    driver = subprocess.Popen(
        [*program, str(out), cluster.address], cwd=root, env=impatient, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while not list(out.glob("pieces/*")) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert driver.poll() is None, driver.communicate()[1]
    cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    try:
        driver.wait(timeout=90)
    except subprocess.TimeoutExpired:  # Ray waits for a head that may come back; its user does not
        driver.send_signal(signal.SIGKILL)
    assert driver.wait() != 0
    subprocess.run([*program, str(out), "here"], check=True, cwd=root)
    assert bytes_of(out) == bytes_of(whole)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:9", "127.0.0.1:9", "ray://no-such-host.invalid:10001"])
def test_a_cluster_out_of_reach_is_said_once_before_any_work(tiny, corpus, tmp_path, monkeypatch, address):
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *arguments, **options: pytest.fail("it worked"))
    neurons = ln.NeuronSet.of({"en": [(0, 1)]}, (2, 48), "act")
    executor = ln.run.RayExecutor(address)
    began = time.monotonic()
    for call in (
        lambda: ln.record(tiny, corpus, executor=executor, out=tmp_path, **STATISTICS),
        lambda: ln.profile(tiny, neurons, corpus, executor=executor, progress=False),
        lambda: ln.perplexity_matrix(tiny, corpus, neurons, executor=executor, progress=False),
    ):
        with pytest.raises(ExecutorError, match="There is no Ray cluster at") as error:
            call()
        assert address in str(error.value)
        assert len(str(error.value)) < 300
    assert time.monotonic() - began < 20
    assert not list(tmp_path.iterdir())
    assert threading.active_count() < 50
