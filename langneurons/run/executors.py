"""Where work runs: in this process, or on a Ray cluster, cut in pieces with the same results.

A job may refer to the model. To another process the model is sent by its name: the process loads it once, as it was
loaded here, and its weights must have the same fingerprint.
"""

import io
import logging
import math
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from langneurons.errors import ExecutorError, StaleArtefactError, in_short
from langneurons.models import ModelView, add_dictionary, load_model, remove_dictionary, view
from langneurons.settings import EXECUTORS

JobType = TypeVar("JobType")
ResultType = TypeVar("ResultType")
Work = Callable[[torch.nn.Module, JobType], ResultType]
PIECES_PER_WORKER = 4  # so that a slow or lost worker costs a fraction of its share
RETRIES = 4  # of a piece whose worker died
MODEL, VIEW = "model", "view"
REACHED_WITHIN = 5.0  # seconds
ORPHANED_WITHIN = 60.0  # seconds after which a worker of a lost machine has ended
patience: ContextVar[float] = ContextVar("seconds to wait for a folder in which another process works", default=0.0)


@runtime_checkable
class Executor(Protocol):
    """Calls a function of a model and a job for many jobs."""

    def pieces(self, model: torch.nn.Module) -> int:
        """Into how many pieces to cut what can be cut anywhere."""
        ...

    def map(
        self, model: torch.nn.Module, work: Work[JobType, ResultType], jobs: Iterable[JobType]
    ) -> Iterator[ResultType]:
        """Give ``work(model, job)`` of every job, in the order of the jobs."""
        ...


class ThisProcess:
    """Runs everything here, one job after the other."""

    def pieces(self, model: torch.nn.Module) -> int:
        """One: cutting gains nothing."""
        return 1

    def map(
        self, model: torch.nn.Module, work: Work[JobType, ResultType], jobs: Iterable[JobType]
    ) -> Iterator[ResultType]:
        """Give ``work(model, job)`` of every job."""
        return (work(model, job) for job in jobs)


@dataclass(frozen=True)
class RayExecutor:
    """Runs jobs as Ray tasks, on this machine or on a cluster.

    A worker that dies costs only what it was computing: that is done again elsewhere.

    Args:
        address: Address of a running cluster, such as ``"ray://head:10001"`` or ``"auto"``; by default that of the
            environment's RAY_ADDRESS, else Ray is started on this machine.
        workers: Pieces computed at once; by default as many as the processors (or GPUs) allow.
        threads: Threads of each piece; by default as many as this process uses, which gives the same bits on the same
            processor.
        gpus: GPUs of each piece; by default as many as the model lies on here.

    Example:
        >>> ln.run.RayExecutor(workers=2).pieces(model)
        8
    """

    address: str | None = None
    workers: int | None = None
    threads: int | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("workers", self.workers), ("threads", self.threads)):
            if value is not None and value < 1:
                raise ExecutorError(f"A Ray executor needs at least 1 of {name}, given {value}.")

    def pieces(self, model: torch.nn.Module) -> int:
        """Into how many pieces to cut what can be cut anywhere."""
        return PIECES_PER_WORKER * self._together(model)

    def map(
        self, model: torch.nn.Module, work: Work[JobType, ResultType], jobs: Iterable[JobType]
    ) -> Iterator[ResultType]:
        """Give ``work(model, job)`` of every job, in order.

        Raises:
            ExecutorError: If Ray is not installed or not reached, or the model cannot be loaded elsewhere.
            StaleArtefactError: If a worker loads other weights.
        """
        jobs = list(jobs)
        if not jobs:
            return
        model_view = view(model)
        if model_view.loaded_as is None:
            raise ExecutorError(
                f"Other processes cannot load {model_view.name!r}, because it was given as an object: save it to a "
                "folder, and load it with ln.load_model(folder)."
            )
        if model_view.hooked:
            raise ExecutorError(
                f"Something is attached to {model_view.name!r}, such as a patch: leave the block first."
            )
        ray, together = self.connect(), self._together(model)
        size = math.ceil(len(jobs) / (PIECES_PER_WORKER * together))
        run = ray.remote(num_cpus=self._threads, num_gpus=self._gpus(model), max_retries=RETRIES)(_computed)
        recipe = ray.put(Recipe.of(model_view, self._threads))
        waiting: deque[Any] = deque()
        try:
            for start in range(0, len(jobs), size):
                waiting.append(run.remote(_sent((work, jobs[start : start + size]), model), recipe))
                if len(waiting) > 2 * together:
                    yield from _received(ray, waiting)
            while waiting:
                yield from _received(ray, waiting)
        finally:
            for piece in waiting:
                with suppress(ray.exceptions.RayError, ConnectionError):  # with the cluster, its pieces are gone, too
                    ray.cancel(piece, force=True)

    @property
    def _threads(self) -> int:
        return self.threads or torch.get_num_threads()

    def _gpus(self, model: torch.nn.Module) -> float:
        if self.gpus is not None:
            return self.gpus
        return len({weight.device for weight in model.parameters() if weight.device.type == "cuda"})

    def _together(self, model: torch.nn.Module) -> int:
        """How many pieces are computed at once."""
        if self.workers is not None:
            return self.workers
        resources, gpus = self.connect().cluster_resources(), self._gpus(model)
        room = resources.get("CPU", 1) / self._threads
        return max(1, int(min(room, resources.get("GPU", 0) / gpus) if gpus else room))

    def connect(self) -> Any:
        """Give Ray, connected to the cluster.

        Raises:
            ExecutorError: If Ray is not installed, or the cluster does not answer within seconds.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a study tells nobody that it runs
        here = self.address is None and "RAY_ADDRESS" not in os.environ
        if here:  # Ray talks over the loopback then: a network that goes away would end this process without a word
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        try:
            import ray
        except ImportError as error:
            raise ExecutorError(
                "executor='ray' needs Ray, which is not installed: pip install 'langneurons[ray]'."
            ) from error
        if not ray.is_initialized():
            address = self.address or os.environ.get("RAY_ADDRESS", "")
            _check_answers(address)
            options: dict[str, Any] = {"num_cpus": self.workers * self._threads} if here and self.workers else {}
            if here:
                options["include_dashboard"] = False
            try:
                ray.init(self.address, logging_level=logging.ERROR, log_to_driver=False, **options)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ExecutorError(_out_of_reach(address or "this machine", in_short(error))) from error
        return ray


def _check_answers(address: str) -> None:
    """Refuse a cluster's address, as host and port, where nothing listens: Ray itself would try for minutes.

    Raises:
        ExecutorError: If nothing listens there.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_WITHIN).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ExecutorError(_out_of_reach(address, getattr(error, "strerror", None) or str(error))) from error


def _out_of_reach(address: str, why: str) -> str:
    return (
        f"There is no Ray cluster at {address} ({why}): start one there, give another address, or leave executor= away "
        "to work in this process."
    )


def chosen_executor(executor: "str | Executor | None") -> Executor:
    """Find where work is to run.

    Args:
        executor: None for this process, "ray" for a cluster in the environment or this machine, an address such as
            "ray://head:10001", or an executor.

    Raises:
        ExecutorError: If it is none of these.
    """
    if executor is None:
        return ThisProcess()
    if isinstance(executor, str) and (executor == "ray" or executor.startswith("ray://")):
        return RayExecutor(None if executor == "ray" else executor)
    if isinstance(executor, str) or not isinstance(executor, Executor):
        raise ExecutorError(f"executor must be {EXECUTORS}, given {executor!r:.100}.")
    return executor


@dataclass(frozen=True)
class Recipe:
    """How a worker gets the model that is here.

    Attributes:
        loaded_as: Arguments of ``load_model``.
        fingerprint: Fingerprint of the weights.
        features: Arguments of ``add_dictionary`` of every site of features, by the site's fingerprint.
        threads: Threads of the worker.
    """

    loaded_as: Mapping[str, Any]
    fingerprint: str
    features: Mapping[str, Mapping[str, Any]]
    threads: int

    @classmethod
    def of(cls, model_view: ModelView, threads: int) -> "Recipe":
        """The recipe of a model that ``load_model`` loaded by name."""
        assert model_view.loaded_as is not None
        features = {
            f"{name} {site.fingerprint}": {
                "dictionaries": {place.layer.index: place.dictionary for place in site.placed},
                "at": site.at,
                "name": name,
                "reads": site.reads,
            }
            for name, site in model_view.feature_sites.items()
        }
        return cls(model_view.loaded_as, model_view.fingerprint, features, threads)

    def model(self) -> Any:
        """Load the model, or take that of the piece before."""
        torch.set_num_threads(self.threads)
        if self.fingerprint not in _held:
            _held.clear()
            _held[self.fingerprint] = self._loaded()
        model = _held[self.fingerprint]
        there = {f"{name} {site.fingerprint}": name for name, site in view(model).feature_sites.items()}
        for key in there.keys() - self.features.keys():
            remove_dictionary(model, there[key])
        for key in self.features.keys() - there.keys():
            add_dictionary(model, **self.features[key])
        return model

    def _loaded(self) -> Any:
        model = load_model(**self.loaded_as)
        model_view: ModelView = view(model)
        if model_view.fingerprint != self.fingerprint:
            raise StaleArtefactError(
                f"{model_view.name!r} was changed since it was loaded, or its files were: a worker finds weights "
                f"{model_view.fingerprint[:8]}, and here they are {self.fingerprint[:8]}. Save the changed model and "
                "load it from there."
            )
        return model


_held: dict[str, Any] = {}  # in a worker: the model that it loaded last, by fingerprint


def _sent(content: object, model: torch.nn.Module) -> bytes:
    """Pickle what a worker gets, the model and its view by name."""
    from ray import cloudpickle

    named = {id(model): MODEL, id(view(model)): VIEW}

    class Pickler(cloudpickle.CloudPickler):  # pyright: ignore[reportPrivateImportUsage]
        def persistent_id(self, obj: object) -> str | None:
            return named.get(id(obj))

    file = io.BytesIO()
    Pickler(file).dump(content)
    return file.getvalue()


def _received(ray: ModuleType, waiting: deque) -> Sequence:
    """The results of the first piece that is waited for, as objects of our own: what Ray lends is read-only."""
    try:
        results = ray.get(waiting[0])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except (ray.exceptions.RaySystemError, ConnectionError) as error:
        ray.shutdown()  # so that the next call connects anew
        raise ExecutorError(f"The Ray cluster was lost ({in_short(error)}): make the same call again.") from error
    except ray.exceptions.RayError as error:
        raise ExecutorError(f"A piece of work was lost {RETRIES + 1} times ({in_short(error)}).") from error
    waiting.popleft()
    return pickle.loads(results)


def _computed(sent: bytes, recipe: Recipe) -> bytes:
    """In a worker: compute a piece."""
    model = recipe.model()
    named = {MODEL: model, VIEW: view(model)}

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: str) -> Any:
            return named[pid]

    work, jobs = Unpickler(io.BytesIO(sent)).load()
    # Who computed it before, on a machine that was lost, may not have ended yet.
    waiting = patience.set(ORPHANED_WITHIN)
    try:
        return pickle.dumps([work(model, job) for job in jobs])
    finally:
        patience.reset(waiting)
