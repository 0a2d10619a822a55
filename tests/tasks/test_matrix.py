"""Every pair of task and backbone trains, saves and loads, or is refused by one sentence; docs/matrix.md says which."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from ssl3d.check import check
from ssl3d.checkpoint import exported_prefix
from ssl3d.config import ConfigError
from ssl3d.models.backbone import build_backbone
from ssl3d.models.resnet import ResNet
from ssl3d.tasks.local_contrast import LocalContrast
from ssl3d.tasks.position import PositionRegression
from ssl3d.testing.matrix import backbone_classes, page, refusal, small_backbone, small_size, small_task, task_classes
from ssl3d.testing.pairs import is_long, recipe, step
from ssl3d.testing.pairs import pair as prepared
from ssl3d.testing.toys import make_batch

PAGE = Path(__file__).parents[2] / "docs" / "matrix.md"
PAIRS = [(task, family) for task in task_classes() for family in backbone_classes()]
LONG = {family for family in backbone_classes() if is_long(small_backbone(family))}


def named(pair) -> str:
    return f"{pair[0].__name__}-{pair[1].__name__}"


def test_every_task_has_a_row_among_the_methods():
    methods = (PAGE.parent / "methods" / "README.md").read_text()
    for task in task_classes():
        assert f"| [{task.__name__}" in methods, f"docs/methods/README.md: add a row for {task.__name__}, and its page"


def test_a_task_without_smallest_values_is_asked_for_them():
    class Unheard(LocalContrast):
        pass

    with pytest.raises(LookupError, match=r"Unheard has no line in task_node of ssl3d/testing/matrix\.py"):
        small_task(Unheard, small_backbone(ResNet))


def test_all_are_found():
    assert len(task_classes()) >= 8 and len(backbone_classes()) >= 11


def timed(pair):
    """The pair, marked slow where its network's least input is large."""
    marks = [pytest.mark.slow] if pair[1] in LONG and refusal(*pair) is None else []
    return pytest.param(pair, id=named(pair), marks=marks)


@pytest.mark.parametrize("pair", map(timed, PAIRS))
def test_one_step_and_what_it_leaves_or_one_sentence(pair):
    task_class, family = pair
    if refusal(*pair) is not None:
        with pytest.raises(ConfigError) as error:
            check(recipe(*pair, "store", "run"))
        (sentence,) = error.value.faults
        assert "\n" not in sentence and sentence.startswith("task") and family.__name__ in sentence
        return
    task, batch = prepared(*pair)
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-3)
    step(task, batch, optimizer)
    state = task.state_dict()
    torch.manual_seed(1)
    small_task(task_class, small_backbone(family)).load_state_dict(state)
    prefix = exported_prefix(task)
    alone = build_backbone(task.exported.spec())
    alone.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    assert dataclasses.asdict(alone.spec()) == dataclasses.asdict(task.exported.spec())
    image = make_batch(small_size(task.exported), batch=1).image
    with torch.no_grad():
        expected = task.exported.eval().encode(image)
        assert all(torch.equal(a, b) for a, b in zip(alone.eval().encode(image), expected, strict=True))


def test_the_page_says_what_the_code_does():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m ssl3d.testing.matrix > docs/matrix.md"


def test_what_makes_no_sense_is_refused():
    refused = {named(pair) for pair in PAIRS if refusal(*pair) is not None}
    assert "SimMIM-ResEncUNet" in refused and "MAE-ResNet" in refused and "SimCLR-ResNet" not in refused


@pytest.mark.parametrize("node", [{"target": "voxel", "mask_share": 0.0}, {"target": "crop", "mask_share": 0.5}])
def test_what_needs_a_decoder_names_the_form_that_needs_none(node):
    made = recipe(PositionRegression, ResNet, "store", "run")
    with pytest.raises(ConfigError, match="ResNet has no decoder: use target: crop, mask_share: 0"):
        check(made | {"task": made["task"] | node})
    made = recipe(LocalContrast, ResNet, "store", "run")
    with pytest.raises(ConfigError, match=r"ResNet has no decoder .* use stage: global"):
        check(made | {"task": made["task"] | {"stage": "joint"}})
