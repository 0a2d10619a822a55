"""Every pair of task and backbone trains, saves and loads, or is refused by one sentence; docs/matrix.md says which."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from ssl3d.checkpoint import exported_prefix
from ssl3d.models.backbone import build_backbone
from ssl3d.testing.matrix import backbone_classes, page, refusal, small_backbone, small_size, small_task, task_classes
from ssl3d.testing.toys import make_batch

PAGE = Path(__file__).parents[2] / "docs" / "matrix.md"
PAIRS = [(task, family) for task in task_classes() for family in backbone_classes()]


def named(pair) -> str:
    return f"{pair[0].__name__}-{pair[1].__name__}"


def test_all_are_found():
    assert len(task_classes()) >= 8 and len(backbone_classes()) >= 11


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_two_steps_and_what_they_leave(pair):
    task_class, family = pair
    torch.manual_seed(0)
    backbone = small_backbone(family)
    try:
        task = small_task(task_class, backbone).train()
    except ValueError as error:
        assert "\n" not in str(error) and type(backbone).__name__ in str(error), "one sentence that names the backbone"
        return
    batch = make_batch(task.region.size, batch=2 * max(task.region.group, 1), padded=1)
    trainable = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        loss = task(batch)["loss"]
        loss.backward()
        assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in trainable)
        optimizer.step()
        task.after_step(step, 2)
    state = task.state_dict()
    torch.manual_seed(1)
    again = small_task(task_class, small_backbone(family))
    again.load_state_dict(state)
    prefix = exported_prefix(task)
    exported = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    alone = build_backbone(task.backbone.spec())
    alone.load_state_dict(exported)
    image = make_batch(small_size(backbone), batch=1).image
    with torch.no_grad():
        expected = task.backbone.eval().encode(image)
        for other in (again.backbone.eval(), alone.eval()):
            for found, feature in zip(other.encode(image), expected, strict=True):
                assert torch.equal(found, feature)
    assert dataclasses.asdict(alone.spec()) == dataclasses.asdict(task.backbone.spec())


def test_the_page_says_what_the_code_does():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m ssl3d.testing.matrix > docs/matrix.md"


def test_what_makes_no_sense_is_refused():
    refused = {named(pair) for pair in PAIRS if refusal(*pair) is not None}
    assert "SimMIM-ResEncUNet" in refused and "MAE-ResNet" in refused and "SimCLR-ResNet" not in refused
