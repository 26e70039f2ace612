"""A cluster decodes what one machine would have: the same bytes, even when a worker is lost."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import pytest
from click.testing import CliRunner

from tests.helpers import TOOLS, make_raw
from tests.videos import fake_folder
from vidcache.cli import main
from vidcache.errors import InputError, VidcacheError
from vidcache.preprocess import executors
from vidcache.preprocess.build import build_cache
from vidcache.preprocess.executors import Job, decode_remotely
from vidcache.preprocess.options import BuildOptions
from vidcache.spec import Spec

distributed = pytest.importorskip("distributed", reason="needs the extra `distributed`")
pytestmark = pytest.mark.slow

SPEC = Spec(4, 32, 32)
WORKER = (
    "import asyncio, sys\n"
    "from distributed import Worker\n"
    "async def serve():\n"
    "    async with Worker(sys.argv[1], nthreads=1, dashboard=False, host='127.0.0.1') as worker:\n"
    "        await worker.finished()\n"
    "asyncio.run(serve())\n"
)
SCHEDULER = (
    "import asyncio\n"
    "from distributed import Scheduler\n"
    "async def serve():\n"
    "    async with Scheduler(host='127.0.0.1', port=0, dashboard=False) as scheduler:\n"
    "        print(scheduler.address, flush=True)\n"
    "        await scheduler.finished()\n"
    "asyncio.run(serve())\n"
)


class Cluster:
    """A Dask scheduler and two workers, each a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", SCHEDULER]
        self.scheduler = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.scheduler.stdout is not None
        self.address = self.scheduler.stdout.readline().strip()
        self.workers: list[subprocess.Popen[bytes]] = []
        self.complete()

    def complete(self) -> None:
        """Have two workers; with a single one, joblib would do the work in this process."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < 2:
            command = [sys.executable, "-c", WORKER, self.address]
            self.workers.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        with distributed.Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()
        if self.scheduler.stdout:
            self.scheduler.stdout.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_raw(tmp_path_factory.mktemp("data") / "raw", {"a": 10, "b": 9})
    (folder / "a" / "bad.mp4").write_bytes(b"no video" * 100)
    return folder


def options(cluster: Cluster, **settings: Any) -> BuildOptions:
    return BuildOptions(**{"spec": SPEC, "workers": 2, "backend": "dask", "scheduler": cluster.address, **settings})


quiet = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@quiet
def test_a_dask_cluster_gives_the_bytes_of_one_machine(cluster: Cluster, raw: Path, tmp_path: Path) -> None:
    build_cache(raw, tmp_path / "here.h5", spec=SPEC, workers=2)

    report = build_cache(raw, tmp_path / "there.h5", options(cluster))

    assert (20, 0, 1) == (report.num_decoded, report.num_reused, report.num_failed)
    assert (tmp_path / "here.h5").read_bytes() == (tmp_path / "there.h5").read_bytes()
    assert build_cache(raw, tmp_path / "there.h5", options(cluster)).up_to_date


@quiet
def test_a_lost_worker_costs_a_retry_not_the_build(cluster: Cluster, raw: Path, tmp_path: Path) -> None:
    # $PPID is the worker; it dies in the middle of its first video.
    deadly = fake_folder(tmp_path / "bin", f'mkdir {tmp_path}/once 2>/dev/null && kill -9 $PPID; exec $real "$@"')
    build_cache(raw, tmp_path / "here.h5", spec=SPEC, workers=2)

    report = build_cache(raw, tmp_path / "there.h5", options(cluster, ffmpeg_dir=deadly))

    died = [worker for worker in cluster.workers if worker.poll() is not None]
    assert [-signal.SIGKILL] == [worker.returncode for worker in died]
    assert 20 == report.num_decoded
    assert (tmp_path / "here.h5").read_bytes() == (tmp_path / "there.h5").read_bytes()
    cluster.complete()


def test_a_scheduler_that_does_not_answer_is_an_error_that_says_how_to_start_one(raw: Path, tmp_path: Path) -> None:
    message = r"--scheduler tcp://127\.0\.0\.1:9: no Dask cluster answers .*dask scheduler"
    with pytest.raises(InputError, match=message):
        build_cache(raw, tmp_path / "c.h5", spec=SPEC, backend="dask", scheduler="tcp://127.0.0.1:9")

    assert not (tmp_path / "c.h5").exists()


def test_a_scheduler_without_workers_is_an_error(raw: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCHEDULER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as scheduler:
        assert scheduler.stdout is not None
        address = scheduler.stdout.readline().strip()
        try:
            with pytest.raises(InputError, match=f"{address}: has no workers. Start some with `dask worker {address}`"):
                build_cache(raw, tmp_path / "c.h5", spec=SPEC, backend="dask", scheduler=address)
        finally:
            scheduler.kill()


@quiet
def test_an_error_of_a_worker_is_the_error_of_the_build(cluster: Cluster, raw: Path, tmp_path: Path) -> None:
    # Here it is one version, in a worker another.
    script = f'[ $PPID = {os.getpid()} ] && exec $real "$@"\n$real "$@" | sed "s/version n*[0-9]/version 1/"'
    other = fake_folder(tmp_path / "bin")
    (other / "ffmpeg").write_text(f"#!/bin/sh\nreal={TOOLS.ffmpeg}\n{script}\n")

    message = r"worker on .*: has ffmpeg 1\S* instead of .*Install the same vidcache everywhere"
    with pytest.raises(VidcacheError, match=message):
        build_cache(raw, tmp_path / "c.h5", options(cluster, ffmpeg_dir=other))


def test_a_worker_that_does_not_see_the_videos_is_an_error_not_a_failed_video() -> None:
    elsewhere = Job(0, b"/not/here", b"a/x.mp4", 1, 1)

    with pytest.raises(VidcacheError, match=r"/not/here/a: cannot be read any more"):
        decode_remotely(elsewhere, TOOLS.version, BuildOptions(spec=SPEC))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "dask"], "--backend dask: needs --scheduler ADDRESS"),
        (["--scheduler", "tcp://127.0.0.1:1"], "--scheduler: requires --backend dask or ray"),
        (["--backend", "spark"], "'spark' is not one of 'threads', 'dask', 'ray'"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(
    raw: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(main, ["build", str(raw), str(tmp_path / "c.h5"), *arguments])

    assert 2 == result.exit_code
    assert message in " ".join(result.stderr.split())


def test_a_backend_that_is_not_installed_is_named(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(InputError, match=r"--backend ray: .*pip install 'vidcache\[distributed\]'"):
        build_cache(raw, tmp_path / "c.h5", spec=SPEC, backend="ray")


def test_a_cluster_that_fails_ends_the_build_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand in for the cluster, whose worker raises none of our errors."""

    def fails(*_: Any) -> None:
        raise OSError("its disk\nis full")

    monkeypatch.setattr(executors, "_connect", lambda _: joblib.parallel_config(backend="threading", n_jobs=1))
    monkeypatch.setattr(executors, "decode_remotely", fails)
    raw = make_raw(tmp_path / "raw", {"a": 3}, num_frames=4)

    with pytest.raises(
        VidcacheError, match=r"dask cluster: failed \(OSError: its disk is full\)\. What was decoded is"
    ):
        build_cache(raw, tmp_path / "c.h5", spec=SPEC, backend="dask")

    assert not (tmp_path / "c.h5").exists()
