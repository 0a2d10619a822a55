"""docs/troubleshooting.md: its sentences are printed when they are made to happen, or at least stand in the code."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest

from ssl3d import cli
from ssl3d.testing.small_store import write_small

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SENTENCES = [
    line.strip()
    for block in re.findall(r"^ *```text\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
# PyTorch's and nnU-Net's
OTHERS = ("RuntimeError: operator torchvision", "AssertionError: The shape of the parameters")

TINY = (
    "train mae_resenc_s data.store=my.zarr run.dir=runs/mae run.steps=1 task.patch_size=[16,16,16] task.mask_block=4"
    " data.batch_size=2 data.workers=0 data.holdout=0 run.preview_every=0 run.collapse_every=0 run.precision=32-true"
)
GUARD = "run.dir=runs/guarded guard.suites=[{store: my.zarr, split: split.json}]"
QUICK = {  # what is typed -> sentences that are printed, all of them on the page; nothing is trained
    f"{TINY} data.bach_size=3": 1,
    "train mae_resnc_s": 1,
    "train mae_resenc_l": 1,
    f"{TINY} task.patch_size=[20,20,20]": 1,
    f"{TINY} task.patch_size=[16,16]": 1,
    "check mae_vit_b task.patch_size=[100,100,100]": 1,
    "train mae_resenc_s data.store=my.zarr run.dir=runs/small": 1,
    f"{TINY} data.batch_size=3 run.accumulate=2 run.dir=runs/odd": 1,
    "train simclr_resenc_s data.store=my.zarr run.accumulate=2": 1,
    f"{TINY} data.holdout=0.999 run.dir=runs/none": 1,
    f"{TINY} data.include=[nobody] run.dir=runs/nobody": 1,
    f"{TINY} data.cache_gb=9999 run.dir=runs/cache": 1,
    f"{TINY} {GUARD} guard.on_leak=stop": 1,
    "check resnet.yaml task.patch_size=[64,64,64]": 1,
}


def fits(said: str, sentence: str) -> bool:
    """Whether `said` is the sentence, in which `...` stands for anything."""
    return re.fullmatch(".+".join(map(re.escape, sentence.split("..."))), said) is not None


def words(command: str) -> list[str]:
    return re.findall(r"(?:[^\s\[]|\[[^\]]*\])+", command)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the store, a split, and a recipe whose network has no decoder."""
    folder = tmp_path_factory.mktemp("symptoms")
    write_small(folder / "my.zarr")
    split = {"pool": ["patient0"], "validation": ["patient1"], "test": ["patient4", "patient5"]}
    (folder / "split.json").write_text(json.dumps(split))
    page = (ROOT / "recipes" / "mae_resenc_s.yaml").read_text()
    model = "_target_: ssl3d.models.resnet.ResNet\n  depth: 10\n  in_channels: 1\n"
    (folder / "resnet.yaml").write_text(re.sub(r"(?<=^model:\n  ).*?(?=^task:)", model, page, flags=re.M | re.S))
    return folder


def say(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The sentences of a command, without lines of progress."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli.main(words(command))
    said = capsys.readouterr()
    return [line for line in (said.out + said.err).splitlines() if line.startswith(("ssl3d:", "guard.suites"))]


@pytest.mark.parametrize("command", QUICK)
def test_a_mistake_is_answered_as_the_page_says(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    said = say(command, capsys)
    assert len(said) == QUICK[command]
    for line in said:
        assert any(fits(line, sentence) for sentence in SENTENCES), line


@pytest.mark.slow
def test_what_happens_in_a_run_is_said_as_on_the_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert not say(TINY, capsys)
    commands = [
        f"{TINY} optim.lr=0.5",
        f"{TINY} model.in_channels=2 run.dir=runs/two",
        f"{TINY} run.dir=runs/nan optim.lr=1e30 optim.clip_norm=null optim.warmup_steps=0 run.steps=9",
        f"{TINY} {GUARD}",
        "export runs/mae --to monai --out bundle",
        "export runs/mae --to nnunet --out w --architecture planned",
    ]
    for command in commands:
        said = say(command, capsys)
        assert len(said) == 1, command
        assert any(fits(said[0], sentence) for sentence in SENTENCES), said


def test_every_sentence_of_the_page_stands_in_the_code() -> None:
    """Also those that no test can make happen: three words of them in a row stand in a literal."""
    assert len(SENTENCES) > 20
    sources = [p for package in ("ssl3d", "downstream", "preprocessing") for p in (ROOT / package).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # literals that go on in the next line
    literals = " ".join(re.sub(r"\{[^{}]*\}", " ", code).split())
    for sentence in SENTENCES:
        if sentence.startswith(OTHERS):
            continue
        own = sentence.split()
        assert any(" ".join(own[i : i + 3]) in literals for i in range(len(own) - 2)), sentence
