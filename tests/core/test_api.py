"""ssl3d in Python: four functions that are the verbs of the command line, whatever was imported before."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import downstream
import preprocessing
import ssl3d
from ssl3d import api, cli
from ssl3d.config import ConfigError
from ssl3d.export.report import ExportReport
from ssl3d.log import read_metrics

VERBS = ("convert", "train", "evaluate", "export")
HEAVY = ("torch", "numpy", "pandas", "zarr", "rich", "omegaconf", "preprocessing", "downstream")


def python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_takes_nothing_heavy():
    found = python(f"import ssl3d, sys; print([name for name in {HEAVY} if name in sys.modules])")
    assert found == "[]"


@pytest.mark.parametrize(
    "before",
    [
        "import ssl3d",
        "import ssl3d.train, ssl3d.export",
        "import ssl3d.export.report",
        "from ssl3d.export.source import Source",
        "import ssl3d.loop, ssl3d.cli, ssl3d.api",
        "from ssl3d.train import train\nfrom ssl3d.export import export",
    ],
)
def test_they_are_functions_whatever_was_imported_before(before):
    python(f"{before}\nimport types, ssl3d\nfor verb in {VERBS}:\n"
           "    assert isinstance(getattr(ssl3d, verb), types.FunctionType), verb")  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_each_is_typed_and_says_what_it_returns_and_raises(verb):
    function = getattr(ssl3d, verb)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    assert ("Raises" in function.__doc__ and "eturns" in function.__doc__) or "return" in function.__doc__


@pytest.mark.parametrize(
    ("outer", "inner"), [(ssl3d.convert, preprocessing.convert), (ssl3d.evaluate, downstream.evaluate)]
)
def test_the_signatures_are_those_of_what_they_call(outer, inner):
    outer, inner = inspect.signature(outer).parameters, inspect.signature(inner).parameters
    assert [(p.name, p.kind, p.default) for p in outer.values()] == [
        (p.name, p.kind, p.default) for p in inner.values()
    ]


def test_a_run_trained_by_overrides_is_the_run_of_the_command_line(tiny, tiny_store, tmp_path, capsys):
    recipe = tiny("run.steps=2").to_dict()
    first = ssl3d.train(recipe, {"run.dir": tmp_path / "one", "optim.lr": 1e-3, "task.patch_size": (8, 8, 12)})
    second = ssl3d.train(recipe, [f"run.dir={tmp_path / 'two'}", "optim.lr=1e-3", "task.patch_size=[8,8,12]"])
    assert cli.main(["train", str(first / "recipe.yaml"), f"run.dir={tmp_path / 'three'}"]) == 0
    assert first == tmp_path / "one" and second == tmp_path / "two"
    losses = [[line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl")]
              for name in ("one", "two", "three")]  # fmt: skip
    assert losses[0] and losses[0] == losses[1] == losses[2]
    report = ssl3d.export(str(first), "safetensors", str(tmp_path / "weights"))
    assert isinstance(report, ExportReport) and all(path.is_file() for path in report.files)


def test_mistakes_are_sentences_that_name_the_key(tiny):
    with pytest.raises(ConfigError, match=r"optim\.lrr"):
        ssl3d.train("mae_resenc_s", {"data.store": "my.zarr", "optim.lrr": 1})
    with pytest.raises(ConfigError, match=r"config\.load"):
        ssl3d.train(tiny(), {"run.steps": 1})
    with pytest.raises(FileNotFoundError, match="NOWHERE"):
        ssl3d.convert("NOWHERE", "my.zarr")
    with pytest.raises(FileNotFoundError, match="NOSUITE"):
        ssl3d.evaluate("NOWHERE", "NOSUITE", "out")


@pytest.mark.parametrize("call", [lambda: cli.main(["evaluate", "run", "--suite", "s", "--out", "eval"]),
                                  lambda: ssl3d.evaluate("run", "s", "eval")], ids=["command", "Python"])  # fmt: skip
def test_an_evaluation_says_once_where_its_report_is(call, monkeypatch, capsys):
    monkeypatch.setattr(downstream, "evaluate", lambda *_: Path("eval/report.html"))
    assert call() in (0, Path("eval/report.html"))
    assert capsys.readouterr().out == "eval/report.html\n"


def test_a_namesake_that_hides_our_packages_is_refused(tmp_path):
    (tmp_path / "preprocessing.py").write_text("")
    code = ("import sys; sys.path.insert(0, sys.argv[1])\nimport ssl3d\nfrom ssl3d.api import HiddenPackageError\n"
            "try:\n    ssl3d.convert('a', 'b')\nexcept HiddenPackageError as error:\n    print(error)")  # fmt: skip
    assert "another 'preprocessing'" in python(code, str(tmp_path))
    assert issubclass(api.HiddenPackageError, ImportError)


@pytest.mark.slow
def test_a_script_of_five_lines_needs_no_main_guard(tmp_path):
    """Converting and reading start processes: none of them may run the script again."""
    from ssl3d.data.phantom import write_phantom

    write_phantom(tmp_path / "raw", patients=2)
    script = tmp_path / "five.py"
    script.write_text(
        "import ssl3d\n"
        "open('started.txt', 'a').write('once ')\n"
        "report = ssl3d.convert('raw', 'my.zarr', workers=2)\n"
        "settings = {'data.store': 'my.zarr', 'run.dir': 'run', 'run.steps': 2, 'data.workers': 1}\n"
        "run = ssl3d.train('quickstart/phantom', settings)\n"
        "ssl3d.export(run, 'nnunet', 'weights')\n"
    )
    subprocess.run([sys.executable, script.name], cwd=tmp_path, check=True, timeout=280, capture_output=True)
    assert (tmp_path / "started.txt").read_text() == "once "
    assert json.loads((tmp_path / "weights" / "architecture.json").read_text())
