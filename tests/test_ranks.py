"""Several processes train as one does: the same clips, the same losses, one voice. With real gloo processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import make_cache
from tests.two_processes import SCENARIOS, run
from vidcache.checkpoint import Checkpoint
from vidcache.errors import VidcacheError
from vidcache.spec import Spec
from vidcache.train.distributed import Processes, init_distributed

CHECKOUT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT), "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("c") / "c.h5", {"a": 16, "b": 16}, spec=Spec(8, 32, 32), learnable=True)


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def together(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes saw."""
    out = tmp_path_factory.mktemp("two") / "out.json"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    command = [sys.executable, "-m", "tests.two_processes", str(cache), str(out)]
    processes = [
        subprocess.Popen(command, env={**ENVIRONMENT, **variables, "RANK": rank, "LOCAL_RANK": rank}, cwd=CHECKOUT)
        for rank in ("0", "1")
    ]
    assert [0, 0] == [process.wait(timeout=180) for process in processes]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_loss_of_every_step_is_that_of_one_process(
    name: str, cache: Path, together: dict[str, Any], tmp_path: Path
) -> None:
    alone = run(cache, name, tmp_path)

    found = together[name]
    assert len(alone["steps"]) == len(found["steps"]) >= 3
    assert pytest.approx(alone["steps"], rel=2e-2 if name == "in bf16" else 1e-4) == found["steps"]
    if name == "nothing moves":  # 5 validation clips on 2 processes: one has more; none counts twice
        assert pytest.approx(alone["val"], rel=1e-6) == found["val"]


def test_one_process_that_is_asked_to_stop_stops_all_and_all_go_on(together: dict[str, Any]) -> None:
    assert ["train: stopped in epoch 2, after 2 of its steps"] * 2 == together["resumed"]["said"]
    assert together["plain"]["val"] == together["resumed"]["val"]
    assert together["plain"]["steps"][6:] == together["resumed"]["steps"]


def test_all_processes_end_with_the_same_error(together: dict[str, Any]) -> None:
    said = together["errors"]
    for name, pattern in {
        "not finite": r"VidcacheError: train: loss is (nan|inf) at step \d+ of epoch 1 \(learning rate 1e\+30\)",
        "other options": r"MismatchError: train: options of process 1 is .*'seed': 1.*, but .*'seed': 0",
        "other frames": "InputError: .*c.h5: --num-frames 99: a clip has 8 frames",
        "first fails": "the first cannot",
    }.items():
        assert said[name][0] == said[name][1]
        assert re.match(pattern, said[name][0]), said[name]


def test_each_process_knows_its_place(together: dict[str, Any]) -> None:
    assert [[0, 2, "cpu", True], [1, 2, "cpu", False]] == together["ranks"]


def test_without_torchrun_a_process_is_alone() -> None:
    with init_distributed("cpu") as ranks:
        assert (0, 1, "cpu") == (ranks.rank, ranks.world_size, ranks.device)
        assert (True, False) == (ranks.any(True), ranks.any(False))
        assert [3] == ranks.gather(3)
        assert 7 == ranks.run_on_main(lambda: 7)
        assert torch.equal(torch.ones(2), ranks.all_reduce_sum(torch.ones(2)))


def test_a_lost_connection_is_said_and_other_errors_are_left_alone() -> None:
    message = "train: one of the 3 processes died; see its log. Restart all of them with --resume"
    with pytest.raises(VidcacheError, match=message), Processes(0, 3).watch():
        raise RuntimeError("[/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:4492")
    with pytest.raises(RuntimeError, match="size mismatch"), Processes(0, 3).watch():
        raise RuntimeError("size mismatch")
    with pytest.raises(RuntimeError, match="Connection closed"), Processes().watch():
        raise RuntimeError("Connection closed by peer")


# --- the command, through torchrun -----------------------------------------------------------------

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
FLAGS = "--weights none --freeze layer4 --batch-size 8 --amp off --lr 1e-4 --seed 3 --device cpu --balance none".split()


def start(cache: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    command = [*TORCHRUN, "-m", "vidcache.train", str(cache), "--out", str(out), *FLAGS, *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, cwd=out.parent, **pipes)  # type: ignore[call-overload,no-any-return]


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_torchrun_stops_goes_on_and_speaks_once(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.pt"
    process = start(cache, out, "--epochs", "4", "--patience", "50")
    wait_for(tmp_path / "best.run" / "metrics.csv", process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=90)
    assert process.returncode != 0
    assert "Error: train: stopped" in stderr
    assert 1 <= Checkpoint.load(tmp_path / "best.run" / "last.pt").epoch < 4

    process = start(cache, out, "--resume", "--json")
    stdout, stderr = process.communicate(timeout=120)

    assert 0 == process.returncode, stderr
    assert 4 == json.loads(stdout)["num_epochs"]  # one object, of the first process
    assert 1 == stderr.count("epoch   4  train loss")
    assert 4 == Checkpoint.load(tmp_path / "best.run" / "last.pt").epoch


@pytest.mark.skipif(sys.platform != "linux", reason="children are found in /proc")
def test_a_process_that_dies_ends_the_others_with_a_message(cache: Path, tmp_path: Path) -> None:
    process = start(cache, tmp_path / "best.pt", "--epochs", "50", "--patience", "50")
    wait_for(tmp_path / "best.run" / "metrics.csv", process)
    before = time.monotonic()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, stderr = process.communicate(timeout=90)

    assert process.returncode != 0
    assert time.monotonic() - before < 60
    assert "Error: train: one of the 2 processes died; see its log" in stderr
    assert Checkpoint.load(tmp_path / "best.run" / "last.pt").epoch >= 1
