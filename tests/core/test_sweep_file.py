"""Sweep files: read as wandb reads them, checked before anything runs, and run unchanged by wandb's own agent."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from pathlib import Path

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from ssl3d import config
from ssl3d.config import ConfigError
from ssl3d.sweep import file as sweep_file

SHIPPED = config.names(sweep_file.SWEEPS) or sorted(p.stem for p in sweep_file.SWEEPS.glob("*.yaml"))
COMMAND = ["${env}", "ssl3d", "train", "mae_resenc_s", "data.store=x", "${args_no_hyphens}"]


@pytest.fixture
def stores(monkeypatch):
    monkeypatch.setenv("SSL3D_STORE", "some.zarr")
    monkeypatch.setenv("SSL3D_PROBE_STORE", "labelled.zarr")


@pytest.fixture
def write(tmp_path):
    def make(**values) -> str:
        path = tmp_path / "sweep.yaml"
        base = {"program": "ssl3d", "method": "random", "metric": {"name": "loss"}, "command": COMMAND,
                "parameters": {"optim.lr": {"min": 1e-4, "max": 1e-2}}}  # fmt: skip
        path.write_text(yaml.safe_dump({k: v for k, v in {**base, **values}.items() if v is not None}))
        return str(path)

    return make


def test_there_is_a_sweep_of_each_method():
    assert {sweep_file._yaml(sweep_file.SWEEPS / f"{n}.yaml", n)["method"] for n in SHIPPED} == set(sweep_file.METHODS)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_sweeps_search_keys_that_their_recipes_have(name, stores):
    sweep = sweep_file.read(name)
    sweep_file.check_recipe(sweep)
    assert sweep.metric in ("probe/score", "holdout/loss")
    assert sweep.maximise == (sweep.metric == "probe/score")
    if sweep.metric == "probe/score":
        assert "probe.store=labelled.zarr" in sweep.overrides


def test_distributions_are_wandbs(write):
    sweep = sweep_file.read(write(parameters={
        "optim.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1},
        "optim.weight_decay": {"min": 0.0, "max": 0.1},
        "run.steps": {"min": 2, "max": 9},
        "task.mask_ratio": {"distribution": "q_uniform", "q": 0.25, "min": 0.25, "max": 0.75},
        "task.mask_block": {"values": [8, [4, 8, 8]]},
        "run.seed": {"value": 3},
    }))  # fmt: skip
    assert sweep.space == {
        "optim.lr": FloatDistribution(1e-4, 1e-1, log=True),
        "optim.weight_decay": FloatDistribution(0.0, 0.1),
        "run.steps": IntDistribution(2, 9),
        "task.mask_ratio": FloatDistribution(0.25, 0.75, step=0.25),
        "task.mask_block": CategoricalDistribution([8, "[4,8,8]"]),
    }
    assert sweep.fixed == {"run.seed": 3}
    sweep_file.check_recipe(sweep)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method": "magic"}, "method is 'magic'; it must be grid, random or bayes"),
        ({"metric": None}, r"metric\.name is missing"),
        ({"metric": {"name": "loss", "goal": "big"}}, r"metric\.goal is 'big'"),
        ({"parameters": None}, "parameters is missing"),
        ({"parameters": {"optim.lr": {"min": "1e-4", "max": 1}}}, r"parameters\.optim\.lr needs value, values, or the"),
        ({"parameters": {"optim.lr": {"distribution": "beta", "min": 0.1, "max": 1.0}}}, "distribution is 'beta'"),
        ({"method": "grid"}, r"parameters\.optim\.lr needs values: a grid has no end"),
        ({"command": ["python", "x.py"]}, r"command must be \[\$\{env\}, ssl3d, train"),
        ({"command": [*COMMAND[:4], "data.store=${envvar:SSL3D_NOT_SET}", COMMAND[-1]]}, "export SSL3D_NOT_SET="),
        ({"early_terminate": {"type": "envelope"}}, "early_terminate must be"),
        ({"methods": "grid"}, r"unknown key 'methods'; did you mean 'method'\?"),
    ],
)
def test_faults_are_named(write, values, words):
    with pytest.raises(ConfigError, match=words):
        sweep_file.read(write(**values))


def test_a_key_that_the_recipe_does_not_have_is_named(write):
    sweep = sweep_file.read(write(parameters={"optim.rate": {"values": [1, 2]}}))
    with pytest.raises(ConfigError, match=r"optim\.rate"):
        sweep_file.check_recipe(sweep)


def wandbs_value(spec: dict):
    """A value that wandb's server could send for a parameter."""
    return spec.get("value", spec["values"][-1] if "values" in spec else spec.get("max"))


class Server:
    """A stub of wandb's GraphQL server: a sweep, an agent, and two runs, the second of which it stops."""

    def __init__(self, sweep: str, started: Path) -> None:
        self.settings = {"entity": "someone", "project": "ssl3d"}
        self.sweep, self.started, self.sent, self.beats = sweep, started, 0, []
        self._service_api = self

    def execute_graphql(self, query, variables=None, timeout=None):
        if "SweepWithRuns" in query:
            return {"project": {"sweep": {"config": self.sweep, "runs": {"edges": []}}}}
        if "CreateAgent" in query:
            return {"createAgent": {"agent": {"id": "agent0"}}}
        assert "Heartbeat" in query
        running = json.loads(variables["runState"])
        self.beats.append(running)
        return {"agentHeartbeat": {"agent": {"id": "agent0"}, "commands": json.dumps(self.commands(running))}}

    def commands(self, running):
        if not running and self.sent < 2:
            self.sent += 1
            parameters = yaml.safe_load(self.sweep)["parameters"]
            args = {k: {"value": wandbs_value(spec)} for k, spec in parameters.items()}
            args["model.init"] = {"value": None}
            return [{"type": "run", "run_id": f"run{self.sent}", "program": "ssl3d", "args": args}]
        if "run2" in running and (self.started / "run2").exists():
            return [{"type": "stop", "run_id": "run2"}]
        return [{"type": "exit"}] if not running else []


PROGRAM = """#!{python}
import os, pathlib, signal, sys, time
from ssl3d import config
from ssl3d.signals import Interrupted

assert sys.argv[1] == "train"
recipe = config.load(sys.argv[2], sys.argv[3:])
assert recipe.model["init"] is None
started = pathlib.Path({started!r})
stopped = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
run = os.environ["WANDB_RUN_ID"]
(started / run).write_text(" ".join(sys.argv[1:]) + "\\n" + os.environ["WANDB_SWEEP_ID"])
while run == "run2" and not stopped:
    time.sleep(0.01)
sys.exit(Interrupted("", stopped[0]).exit_code if stopped else 0)
"""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "voco_bayes" else pytest.mark.acceptance) for n in SHIPPED]
)
def test_wandbs_agent_runs_a_shipped_sweep_unchanged(name, stores, tmp_path, monkeypatch):
    """Register, a run that ends, a run that is stopped by SIGTERM and is no failure, exit.

    `ssl3d` on the path is a program that reads its arguments as ssl3d train does, and waits where it would train.
    """
    import wandb.wandb_agent as agent

    started = tmp_path / "started"
    started.mkdir()
    program = tmp_path / "bin" / "ssl3d"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable, started=str(started)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(config.__file__).parents[1]))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep0")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_RUN_ID", "")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "")
    monkeypatch.setattr(agent.Agent, "POLL_INTERVAL", 0.05)
    monkeypatch.chdir(tmp_path)
    server = Server((sweep_file.SWEEPS / f"{name}.yaml").read_text(), started)
    monkeypatch.setattr(agent.wandb, "Api", lambda: server)  # the agent asks for a new one after each run
    watched = agent.Agent(server, multiprocessing.Queue(), sweep_id="sweep0")
    guard = threading.Timer(100, lambda: os._exit(3))
    guard.start()
    try:
        watched.run()
    finally:
        guard.cancel()
    assert server.sent == 2
    assert watched._failed == 0
    said, sweep = (started / "run1").read_text().splitlines()
    assert sweep == "sweep0"
    assert said.startswith("train ") and "data.store=some.zarr" in said and said.endswith("model.init=None")
