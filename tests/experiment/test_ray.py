"""Sweeps on a Ray cluster (``make test-ray``): the table of the other launchers, requests, a worker that dies."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.overhead import AXES
from benchmarks.stores import table
from tests.experiment.test_sweep import given
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.cluster import refuse_silent
from tokcomp.experiment.store import Store
from tokcomp.experiment.sweep import sweep

pytest.importorskip("hydra_plugins.hydra_ray_launcher")
# Ray opens files and sockets that it leaves to the process's end.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, int]]:
    """Address of a cluster of two processors and, as Ray believes, one GPU; process id of its head."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # On this machine's own address, with no token to be kept in a home folder.
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    start = "import sys; from ray.scripts.scripts import main; sys.argv[0] = 'ray'; main()"
    arguments = ["start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2",
                 "--num-gpus=1", "--include-dashboard=false"]  # fmt: skip
    head = subprocess.Popen([sys.executable, "-c", start, *arguments], stdout=subprocess.DEVNULL)
    try:
        _wait_for(f"127.0.0.1:{port}", seconds=90)
        yield f"127.0.0.1:{port}", head.pid
    finally:
        head.terminate()
        head.wait(30)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _wait_for(address: str, seconds: float) -> None:
    """Ray gives a head that is not up yet fewer seconds than a busy machine needs to start it."""
    end = time.monotonic() + seconds
    while True:
        try:
            return refuse_silent(address, {}, patience=max(end - time.monotonic(), 1))
        except ConfigurationError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


@pytest.fixture(autouse=True)
def _left(cluster: tuple[str, int]) -> Iterator[None]:
    """No test goes on with the cluster that another one is connected to."""
    import ray

    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def basic(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("basic")
    sweep(given(untrained, store, *AXES))
    return store


def on(cluster: tuple[str, int]) -> list[str]:
    return ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={cluster[0]}"]


@pytest.mark.parametrize("where", ["joblib", "a given cluster", "a cluster of its own"])
def test_27_combinations_give_the_same_table(
    where: str, untrained: Path, tmp_path: Path, basic: Path, cluster: tuple[str, int]
) -> None:
    if where == "joblib":
        launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    elif where == "a given cluster":
        launcher = on(cluster)
    else:
        launcher = ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2",
                    "+hydra.launcher.ray.init.include_dashboard=false"]  # fmt: skip
    outcome = sweep(given(untrained, tmp_path, *AXES, *launcher))
    assert (len(outcome.done), outcome.failed, outcome.broken) == (27, {}, None)
    assert table(tmp_path) == table(basic)


def test_a_job_waits_for_what_it_asks_for(untrained: Path, tmp_path: Path, cluster: tuple[str, int]) -> None:
    asked = ["+hydra.launcher.ray.remote.num_cpus=1", "+hydra.launcher.ray.remote.num_gpus=1"]
    outcome = sweep(given(untrained, tmp_path, *AXES[:1], "seed=0,1", *on(cluster), *asked))
    assert len(outcome.done) == 6
    # There are two processors and one GPU: no two jobs at once.
    store = Store(tmp_path)
    lines = next(iter((tmp_path / "journal").iterdir())).stem
    spans = sorted(
        ((store.folder(line["key"]) / "result.json").stat().st_mtime, line["seconds"]) for line in store.journal(lines)
    )
    for (earlier, _), (later, seconds) in itertools.pairwise(spans):
        assert later - seconds > earlier - 0.05


def test_a_job_whose_worker_died_is_made_again(
    untrained: Path, tmp_path: Path, basic: Path, cluster: tuple[str, int]
) -> None:
    with killing_one(cluster[1], tmp_path) as killed:
        outcome = sweep(given(untrained, tmp_path, *AXES, *on(cluster), "+hydra.launcher.ray.remote.max_retries=2"))
    assert len(killed) == 1
    assert (len(outcome.done), outcome.failed, outcome.broken) == (27, {}, None)
    assert table(tmp_path) == table(basic)


@contextmanager
def killing_one(head: int, store: Path) -> Iterator[list[int]]:
    """Send SIGKILL to one worker of a cluster while it makes a run, after the first run is there."""
    killed: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set() and not killed:
            time.sleep(0.02)
            if any(store.glob("runs/*/result.json")):
                for worker in busy_workers(head)[:1]:
                    os.kill(worker, signal.SIGKILL)
                    killed.append(worker)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def busy_workers(head: int) -> list[int]:
    """Process ids of the workers under a cluster's head that make a run now."""
    parents, busy = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(b"ray::_run_job"):
                busy.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return [worker for worker in busy if head in _line(worker, parents)]


def _line(process: int, parents: dict[int, int]) -> list[int]:
    line = [process]
    while line[-1] in parents:
        line.append(parents[line[-1]])
    return line


def test_a_cluster_that_is_not_there_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"the Ray cluster at {address} does not answer within 6 seconds"):
            refuse_silent(address, {}, patience=6)
