"""`ssl3d sweep --local`: the same file without a server; resumed, pruned, and a table of what came out."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from ssl3d.signals import EXIT_CODE
from ssl3d.sweep import local
from ssl3d.sweep.local import SweepFailed, run_local

TRAIN = '''
import json, pathlib, signal, sys, time
values = dict(a.split("=", 1) for a in sys.argv[3:])
run = pathlib.Path(values["run.dir"])
stopped = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
with (run / "started").open("a") as file:
    file.write(json.dumps(values) + "\\n")
x = float(values["optim.lr"])
metrics = run / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for step in range(done + 1, int(values["run.steps"]) + 1):
    with metrics.open("a") as file:
        file.write(json.dumps({"step": step, "loss": (x - 0.02) ** 2 + 1 / step}) + "\\n")
    time.sleep(float(values["run.seed"]) / 1000)
    if stopped:
        sys.exit(75)
sys.exit(1 if x > 0.9 else 0)
'''


FAST = {"run.seed": {"value": 0}}  # the program's sleep between two steps, in ms


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """sweep(**values) -> a sweep file, whose runs are a program that writes a loss known in closed form."""
    program = tmp_path / "train.py"
    program.write_text(TRAIN)

    def start(arguments, log):
        return subprocess.Popen([sys.executable, str(program), "train", *arguments], stdout=log, stderr=log)

    monkeypatch.setattr(local, "start", start)
    monkeypatch.setattr(local, "LOOK_SECONDS", 0.01)

    def write(**values) -> str:
        path = tmp_path / "sweep.yaml"
        base = {
            "program": "ssl3d", "method": "grid", "metric": {"name": "loss", "goal": "minimize"},
            "parameters": {"optim.lr": {"values": [0.5, 0.02, 0.1]}, "run.steps": {"value": 4}, **FAST},
            "command": ["${env}", "ssl3d", "train", "mae_resenc_s", "data.store=x", "${args_no_hyphens}"],
        }  # fmt: skip
        path.write_text(yaml.safe_dump({**base, **values}))
        return str(path)

    return write


def table(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_grid_is_run_to_its_end_and_ranked(sweep, tmp_path, capsys, at_once):
    run_local(sweep(), 99, tmp_path / "out", at_once=at_once)
    rows = table(tmp_path / "out")
    assert [float(row["optim.lr"]) for row in rows] == [0.02, 0.1, 0.5]
    assert float(rows[0]["loss"]) == pytest.approx(0.25)
    assert {row["state"] for row in rows} == {"complete"}
    assert "best of 3: loss 0.25 in run_" in capsys.readouterr().out


def test_finished_runs_count_and_the_same_seed_draws_the_same_values(sweep, tmp_path):
    random = sweep(method="random", parameters={
        "optim.lr": {"min": 0.0, "max": 0.5}, "run.steps": {"value": 1}, "run.seed": {"value": 0},
    })  # fmt: skip
    run_local(random, 2, tmp_path / "out")
    run_local(random, 4, tmp_path / "out")
    first = sorted(row["optim.lr"] for row in table(tmp_path / "out"))
    assert len(first) == 4
    run_local(random, 2, tmp_path / "again")
    assert {row["optim.lr"] for row in table(tmp_path / "again")} < set(first)


def test_failed_runs_stay_in_the_table_and_their_output_is_kept(sweep, tmp_path):
    run_local(sweep(parameters={"optim.lr": {"values": [0.02, 1.0]}, "run.steps": {"value": 1},
                                "run.seed": {"value": 0}}), 2, tmp_path / "out")  # fmt: skip
    rows = table(tmp_path / "out")
    assert [(row["state"], row["optim.lr"]) for row in rows] == [("complete", "0.02"), ("fail", "1.0")]
    assert (tmp_path / "out" / rows[1]["run"] / "output.log").exists()
    with pytest.raises(SweepFailed, match="no run of the sweep ended with loss"):
        run_local(sweep(parameters={"optim.lr": {"values": [1.0]}, "run.steps": {"value": 1},
                                    "run.seed": {"value": 0}}), 1, tmp_path / "failed")  # fmt: skip


@pytest.mark.slow
def test_hyperband_ends_runs_that_stay_behind(sweep, tmp_path):
    many = [0.02] + [0.4 + 0.01 * i for i in range(7)]
    run_local(sweep(early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2}, parameters={
        "optim.lr": {"values": many}, "run.steps": {"value": 30}, "run.seed": {"value": 60},
    }), 8, tmp_path / "out")  # fmt: skip
    rows = table(tmp_path / "out")
    assert (rows[0]["state"], rows[0]["optim.lr"]) == ("complete", "0.02")
    ended = [row for row in rows if row["state"] == "pruned"]
    assert ended
    for row in ended:
        steps = len((tmp_path / "out" / row["run"] / "metrics.jsonl").read_text().splitlines())
        assert steps < 30 and row["loss"], "it was asked to stop, and what it had reached stays in the table"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_sweep_that_is_stopped_takes_its_run_up_where_it_was(sweep, tmp_path, name):
    searched = {"optim.lr": {"values": [0.5, 0.02]}}
    slow = sweep(parameters={**searched, "run.steps": {"value": 40}, "run.seed": {"value": 50}})
    out = tmp_path / "out"
    driver = tmp_path / "driver.py"
    driver.write_text(f"""
import subprocess, sys
from pathlib import Path
from ssl3d.signals import Interrupted
from ssl3d.sweep import local
program = [sys.executable, {str(tmp_path / "train.py")!r}, "train"]
local.start = lambda arguments, log: subprocess.Popen([*program, *arguments], stdout=log, stderr=log)
try:
    local.run_local({slow!r}, 2, Path({str(out)!r}))
except Interrupted as stop:
    print(stop)
    sys.exit(stop.exit_code)
""")
    environment = {**os.environ, "PYTHONPATH": str(Path(local.__file__).parents[2])}
    process = subprocess.Popen([sys.executable, str(driver)], stdout=subprocess.PIPE, text=True, env=environment)
    first = out / "run_0000" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not first.exists() or len(first.read_text().splitlines()) < 5:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE and f"stopped by {name}; the same command goes on" in said
    done = len(first.read_text().splitlines())
    assert 5 <= done < 40
    run_local(slow, 2, out)
    starts = [json.loads(line) for line in (out / "run_0000" / "started").read_text().splitlines()]
    assert len(starts) == 2 and starts[0] == starts[1], "the same values in the same directory"
    rows = [row for row in table(out) if row["state"] == "complete"]
    assert sorted(float(row["optim.lr"]) for row in rows) == [0.02, 0.5]


@pytest.mark.acceptance
def test_real_runs_with_a_probe(tiny, tmp_path):
    """The verb itself, two runs of the tiny recipe."""
    recipe = tmp_path / "recipe.yaml"
    OmegaConf.save(OmegaConf.create(tiny("run.steps=4", "run.log_every=2").to_dict()), recipe)
    file = tmp_path / "lr.yaml"
    file.write_text(yaml.safe_dump({
        "program": "ssl3d", "method": "grid", "metric": {"name": "loss", "goal": "minimize"},
        "parameters": {"optim.lr": {"values": [0.01, 0.02]}},
        "command": ["${env}", "ssl3d", "train", str(recipe), "${args_no_hyphens}"],
    }))  # fmt: skip
    command = [sys.executable, "-m", "ssl3d", "sweep", str(file), "--local", "2", "--out", str(tmp_path / "out")]
    subprocess.run(command, check=True, capture_output=True, timeout=110, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert [row["state"] for row in table(tmp_path / "out")] == ["complete", "complete"]
    assert (tmp_path / "out" / "run_0001" / "checkpoints" / "last.pt").exists()
