"""Run a sweep on this machine, without a server: one process a run, resumable, a table at the end."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import optuna
from filelock import FileLock, Timeout
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from ssl3d.config import ConfigError
from ssl3d.log import METRICS_FILE, read_metrics
from ssl3d.signals import interrupted_by_signals
from ssl3d.sweep import file as sweep_file
from ssl3d.sweep.file import Sweep
from ssl3d.terminal import say

LOOK_SECONDS = 0.5  # between two looks at the metrics of a run
JOURNAL, TABLE = "study.journal", "results.csv"
FOLDER = "folder"  # attribute of a trial: the run directory it writes to


class SweepFailed(ValueError):
    """No run of a sweep ended with a result; the message is one sentence."""


def run_local(name: str, runs: int, out: Path, overrides: Sequence[str] = (), at_once: int = 1) -> Path:
    """Run `runs` runs of a sweep in all, `at_once` beside each other; returns the table of results.

    `out` holds a run directory for each, the study's journal and results.csv. The same command again goes on: finished
    runs count, interrupted ones are resumed with the values they had.
    Raises ConfigError (a key is wrong, `out` is in use), FileNotFoundError, SweepFailed when no run ended well, and
    Interrupted, a KeyboardInterrupt, on SIGTERM and SIGUSR1.
    """
    sweep = sweep_file.read(name)
    sweep.overrides += overrides
    sweep_file.check_recipe(sweep)
    if sweep.method == "grid":
        runs = min(runs, len(sweep.grid()))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _claim(out):
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(out / JOURNAL))),
            study_name="sweep",
            load_if_exists=True,
            direction="maximize" if sweep.maximise else "minimize",
            pruner=sweep_file.pruner(sweep),
        )
        # Seeded by the runs there are: a sweep that goes on must not draw its first values once more.
        study.sampler = sweep_file.sampler(sweep, seed=len(study.trials))
        _take_up(study)
        if sweep.method == "grid" and not study.trials:
            for values in sweep.grid():
                study.enqueue_trial(values)
        done = sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in study.trials)
        runner = _Runner(sweep, out)
        try:
            with ThreadPoolExecutor(at_once, thread_name_prefix="ssl3d-sweep") as pool, interrupted_by_signals():
                try:
                    list(pool.map(lambda _: runner.one(study), range(max(0, runs - done))))
                except BaseException:
                    runner.stopped.set()
                    raise
        finally:
            table = write_table(study, sweep, out)
    finished = [t for t in study.trials if t.state == TrialState.COMPLETE]
    if not finished:
        raise SweepFailed(f"{out}: no run of the sweep ended with {sweep.metric}; why is said in RUN/output.log")
    best = study.best_trial
    say(f"best of {len(finished)}: {sweep.metric} {best.value:.6g} in {best.user_attrs[FOLDER]} with {_said(best)}")
    return table


@contextmanager
def _claim(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError([f"another sweep is running in '{out}': choose another --out"]) from None
    with lock:
        yield


def _take_up(study: optuna.Study) -> None:
    """Runs that were cut off with the process: their values and their directory are the next to be tried."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params, user_attrs={FOLDER: trial.user_attrs.get(FOLDER)})
        study.tell(trial.number, state=TrialState.FAIL)


def start(arguments: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """A process of `ssl3d train`."""
    command = [sys.executable, "-m", "ssl3d", "train", *arguments]
    return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "WANDB_MODE": "disabled"})


class _Runner:
    """Starts runs, watches their metrics, ends those that the pruner gives up."""

    def __init__(self, sweep: Sweep, out: Path) -> None:
        self.sweep, self.out = sweep, out
        self.stopped = threading.Event()
        self._asking = threading.Lock()  # a study is asked by one thread at a time: same seed, same values

    def one(self, study: optuna.Study) -> None:
        """Ask for values, run them, tell the result."""
        if self.stopped.is_set():
            return
        with self._asking:
            trial = study.ask(self.sweep.space)
            folder = trial.user_attrs.get(FOLDER) or f"run_{trial.number:04d}"
            trial.set_user_attr(FOLDER, folder)
        say(f"{folder}: {_said(trial)}")
        value, state = self._run(trial, self.out / folder)
        if self.stopped.is_set() and state == TrialState.FAIL:
            return  # it stays "running" in the journal, and is taken up
        study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
        say(f"{folder}: {self.sweep.metric} {value if value is None else format(value, '.6g')} ({state.name.lower()})")

    def _run(self, trial: Trial, folder: Path) -> tuple[float | None, TrialState]:
        folder.mkdir(parents=True, exist_ok=True)
        chosen = {**self.sweep.fixed, **trial.params}
        arguments = [self.sweep.recipe, *self.sweep.overrides, *(f"{k}={v}" for k, v in chosen.items())]
        arguments.append(f"run.dir={folder}")
        asked = pruned = False
        reported = 0
        with (folder / "output.log").open("ab") as log:
            process = start(arguments, log)
            try:
                while process.poll() is None:
                    values = self._values(folder) if self.sweep.min_iter is not None else []
                    for number, value in enumerate(values[reported:], start=reported + 1):
                        trial.report(value, number)
                    behind, reported = len(values) > reported and trial.should_prune(), len(values)
                    if not asked and (self.stopped.is_set() or behind):
                        asked, pruned = True, not self.stopped.is_set()
                        process.terminate()
                    time.sleep(LOOK_SECONDS)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        values = self._values(folder)
        if pruned and values:
            return values[-1], TrialState.PRUNED
        if process.returncode or not values:
            return None, TrialState.FAIL
        return values[-1], TrialState.COMPLETE

    def _values(self, folder: Path) -> list[float]:
        lines = read_metrics(folder / METRICS_FILE)
        return [line[self.sweep.metric] for line in lines if self.sweep.metric in line]


def _said(trial: Trial | FrozenTrial) -> str:
    return " ".join(f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.params.items())


def write_table(study: optuna.Study, sweep: Sweep, out: Path) -> Path:
    """results.csv: a row a run, best first, those without a result last."""
    rows = [
        {"run": t.user_attrs.get(FOLDER, ""), "state": t.state.name.lower(), sweep.metric: t.value, **t.params}
        for t in study.trials
        if t.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    ]
    order = {"complete": 0, "pruned": 1, "fail": 2}
    sign = -1 if sweep.maximise else 1
    rows.sort(key=lambda r: (order[r["state"]], sign * (r[sweep.metric] or 0)))
    path = out / TABLE
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["run", "state", sweep.metric, *sweep.space])
        writer.writeheader()
        writer.writerows(rows)
    return path
