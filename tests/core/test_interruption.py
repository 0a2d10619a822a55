"""A run that is asked to end finishes its step, saves and says how to go on; the same command gives the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from omegaconf import OmegaConf

from ssl3d import checkpoint
from ssl3d.interruption import Interruption
from ssl3d.log import read_metrics
from ssl3d.signals import EXIT_CODE, SIGNALS, Interrupted
from ssl3d.tasks.mae import MAE
from ssl3d.train import train


class OneRank:
    world_size = 1


@pytest.fixture
def signal_in_step(monkeypatch):
    """signal_in_step(n, number): the process sends itself a signal in the forward pass of step n (0 is the first)."""

    def arm(n: int, number: int) -> None:
        calls, original = [], MAE.forward

        def forward(self, batch, preview=False):
            calls.append(1)
            if len(calls) == n + 1:
                os.kill(os.getpid(), number)
            return original(self, batch, preview)

        monkeypatch.setattr(MAE, "forward", forward)

    return arm


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: signal.Signals(n).name)
def test_a_signal_saves_the_step_it_came_in_and_the_run_goes_on(tiny, tmp_path, signal_in_step, number):
    whole = train(tiny(f"run.dir={tmp_path / 'whole'}"))
    before = [signal.getsignal(n) for n in SIGNALS]
    signal_in_step(4, number)
    with pytest.raises(Interrupted, match=f"stopped by {signal.Signals(number).name} after step 5 of 8") as stopped:
        train(tiny("run.checkpoint_every=100"))
    assert stopped.value.exit_code == (1 if number == signal.SIGINT else EXIT_CODE)
    assert [signal.getsignal(n) for n in SIGNALS] == before
    assert checkpoint.open_run(tmp_path / "run")["step"] == 5
    train(tiny("run.checkpoint_every=100"))
    a, b = (checkpoint.open_run(run)["model"] for run in (whole, tmp_path / "run"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_signal_in_the_last_step_ends_the_run_as_usual(tiny, tmp_path, signal_in_step):
    signal_in_step(7, signal.SIGTERM)
    assert checkpoint.open_run(train(tiny()))["step"] == 8


def test_under_a_sweep_agent_the_exit_code_is_no_failure(monkeypatch):
    assert Interrupted("", signal.SIGTERM).exit_code == 75
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert Interrupted("", signal.SIGTERM).exit_code == 0


def test_a_second_ctrl_c_stops_at_once():
    with Interruption(OneRank()) as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.seen() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt, match="at once"):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_signals_are_left_alone():
    before, found = [signal.getsignal(n) for n in SIGNALS], []

    def run() -> None:
        with Interruption(OneRank()) as interruption:
            found.append((interruption.seen(), [signal.getsignal(n) for n in SIGNALS]))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(0, before)]


def start(file, *overrides, ranks=1, **environment):
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "ssl3d", "train", str(file), *overrides],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def wait_for_step(process, run, step):
    while process.poll() is None:
        if (lines := read_metrics(run / "metrics.jsonl")) and lines[-1]["step"] >= step:
            return
        time.sleep(0.005)
    raise AssertionError(process.stderr.read())


@pytest.mark.slow
def test_sigterm_from_outside_says_how_to_go_on_and_exits_75(tiny, tmp_path):
    recipe = tiny("run.steps=5000", "run.log_every=1", "run.checkpoint_every=0")
    file = tmp_path / "recipe.yaml"
    OmegaConf.save(OmegaConf.create(recipe.to_dict()), file)
    process = start(file)
    wait_for_step(process, tmp_path / "run", 3)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE
    assert said.splitlines()[-1].endswith("and saved; the same command goes on")
    step = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    assert checkpoint.open_run(tmp_path / "run")["step"] == step


@pytest.mark.parametrize(
    "stops",
    [
        pytest.param(((2, 4), (1, None)), marks=pytest.mark.slow, id="2 then 1"),
        pytest.param(((2, 4), (1, 9), (2, None)), marks=pytest.mark.acceptance, id="2 then 1 then 2"),
    ],
)
def test_one_rank_of_two_gets_the_signal_and_both_stop_at_the_same_step(stops, tiny, tmp_path):
    """The pre-empted run goes on with other ranks (ranks, step of the signal), and ends as one never stopped does."""
    exact = ["run.precision=64-true", "optim.name=sgd", "data.batch_size=4", "run.log_every=1", "run.steps=24"]
    recipe = tiny(*exact, "run.checkpoint_every=100")
    file = tmp_path / "recipe.yaml"
    OmegaConf.save(OmegaConf.create(recipe.to_dict()), file)
    whole = train(tiny(*exact, f"run.dir={tmp_path / 'whole'}"))
    run = tmp_path / "run"
    for ranks, at in stops:
        process = start(file, ranks=ranks)
        if at is not None:
            wait_for_step(process, run, at)
            process.terminate()  # torchrun hands it on to its ranks, one after the other
        process.communicate(timeout=200)
        assert (process.returncode == 0) == (at is None)
        if at is not None:
            assert at <= checkpoint.open_run(run)["step"] < 24
    a, b = (checkpoint.open_run(r)["model"] for r in (whole, run))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-9
    one, many = (read_metrics(r / "metrics.jsonl") for r in (whole, run))
    assert [line["step"] for line in many] == list(range(1, 25)), "each step once: each sample was seen once"
    assert [line["loss"] for line in many] == pytest.approx([line["loss"] for line in one], rel=1e-9)
