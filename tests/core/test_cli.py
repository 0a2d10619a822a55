"""What was typed wrong is answered by one sentence, in seconds, without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from ssl3d import cli
from ssl3d.cli import _verbs, main
from ssl3d.signals import EXIT_CODE

MISTAKES = [
    (["trian"], "did you mean 'train'"),
    ([], "VERB"),
    (["train"], "RECIPE"),
    (["train", "mae_resenc_x"], "mae_resenc_x"),
    (["train", "mae_resenc_s", "data.store=NOWHERE.zarr"], "NOWHERE.zarr"),
    (["train", "mae_resenc_s", "data.stor=x"], "data.stor"),
    (["train", "mae_resenc_s", "data.store=x", "optim.lr=high"], "optim.lr"),
    (["train", "mae_resenc_s", "--fast"], "--fast"),
    (["check", "mae_resenc_s", "task.mask_ratio=1.5"], "mask_ratio"),
    (["convert", "NOWHERE", "out.zarr"], "NOWHERE"),
    (["convert", "x"], "SOURCE"),
    (["export", "NOWHERE", "--to", "nnunet", "--out", "w"], "NOWHERE"),
    (["evaluate", "NOWHERE", "--suite", "NOSUITE", "--out", "e"], "NO"),
    (["inspect", "NOWHERE.zarr"], "NOWHERE.zarr"),
    (["report", "NOWHERE"], "NOWHERE"),
    (["quickstart", "--data", "NOWHERE"], "NOWHERE"),
    (["recipes", "nothing"], "nothing"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(a) or "(nothing)" for a, _ in MISTAKES])
def test_mistake(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) in (1, 2)
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert len(error.strip().splitlines()) == 1, error
    assert list(tmp_path.iterdir()) == [], "a mistake leaves nothing behind"


def test_an_empty_source_is_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["convert", str(tmp_path / "empty"), str(tmp_path / "s.zarr")]) == 1
    error = capsys.readouterr().err
    assert "empty" in error and "Traceback" not in error


def test_every_verb_has_help_with_an_example(capsys):
    for verb in _verbs():
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert f"example: ssl3d {verb}" in capsys.readouterr().out


def test_recipes_are_listed_printed_and_copied(tmp_path, capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert "mae_resenc_l" in listed and "downstream/hippocampus" in listed
    assert all(main(["recipes", line.split()[0]]) == 0 for line in listed.splitlines() if "downstream/" in line)
    capsys.readouterr()
    assert main(["recipes", "mae_resenc_l"]) == 0
    printed = capsys.readouterr().out
    assert main(["copy", "mae_resenc_l", str(tmp_path / "mine.yaml")]) == 0
    assert (tmp_path / "mine.yaml").read_text() == printed
    assert capsys.readouterr().out == f"{tmp_path / 'mine.yaml'}\n"
    assert main(["copy", "mae_resenc_l", str(tmp_path / "mine.yaml")]) == 2
    assert main(["copy", "cluster/slurm.sh", str(tmp_path / "job.sh")]) == 0
    assert "sbatch" in (tmp_path / "job.sh").read_text().lower()


def test_a_reader_that_has_seen_enough_is_no_failure():
    for verb in ("recipes", "recipes mae_resenc_l"):  # more and less than a buffer
        command = f"set -o pipefail; {sys.executable} -m ssl3d {verb} | head -n 1"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "" and len(done.stdout.splitlines()) == 1


def test_debug_shows_the_traceback(capsys):
    assert main(["--debug", "train", "mae_resenc_x"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = (
        "import sys; from ssl3d.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_while_a_run_starts_exits_with_75(monkeypatch, capsys, name):
    """SLURM's warning may come before there is a run; any other exit code would not be put back into the queue."""
    before = signal.getsignal(getattr(signal, name))
    monkeypatch.setattr(cli, "train", lambda recipe, overrides: os.kill(os.getpid(), getattr(signal, name)))
    assert main(["train", "mae_resenc_s"]) == EXIT_CODE
    assert f"stopped by {name}; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(getattr(signal, name)) == before
