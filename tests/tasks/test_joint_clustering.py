"""JointClustering: slabs encoded alone and matched by place, codes and losses against slow twins, the suite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl3d.augment import Compose, GaussianNoise, SpatialTransform
from ssl3d.losses.sinkhorn import sinkhorn
from ssl3d.models.vit import ViT
from ssl3d.regions import Geometry
from ssl3d.seeding import torch_generators
from ssl3d.tasks.joint_clustering import JointClustering
from ssl3d.tasks.slabs import SlabAttention, cut, draw_hidden, same_slab, usable
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE, STACK = (4, 8, 12), (12, 8, 12)
SMALL = {"crop_size": SIZE, "slices": 3, "prototypes": 6, "depth": 1, "heads": 2, "hidden_dim": 16, "out_dim": 8}


def views(**changes) -> Compose:
    return Compose([SpatialTransform(**{"p_rotation": 1, "shift": 0.2} | changes), GaussianNoise(p=0.5)])


class TestJointClustering(TaskTests):
    overfit_steps = 150

    def make_task(self):
        return JointClustering(TinyUNet(2), augment=views(), **SMALL)

    def make_batch(self, task):
        return make_batch(task.region.size, batch=2, channels=2)


class TestOnTokensWithPadding(TestJointClustering):
    overfit_lr = 3e-3

    def make_task(self):
        return JointClustering(ViT("tiny", in_channels=2, patch_size=(2, 4, 4)), augment=views(), **SMALL)

    def make_batch(self, task):
        return make_batch(task.region.size, batch=3, channels=2, padded=6)

    def test_order_of_the_groups_does_not_matter(self):
        task, batch = self.prepared()
        order = torch.tensor([2, 0, 1])
        torch.testing.assert_close(
            self.loss(task, batch._map(lambda t: t[order])), self.loss(task, batch), rtol=1e-4, atol=1e-4
        )


def test_codes_are_those_of_a_slow_sinkhorn():
    scores = torch.rand((9, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    q = np.exp(scores.numpy() / 0.05)
    for _ in range(3):
        q /= q.sum(0, keepdims=True) * 4
        q /= q.sum(1, keepdims=True) * 9
    found = sinkhorn(scores, 0.05, 3)
    np.testing.assert_allclose(found.numpy(), q * 9, rtol=1e-9)
    many = sinkhorn(scores, 0.05, 500)
    torch.testing.assert_close(many.sum(1), torch.ones(9).double())
    torch.testing.assert_close(many.sum(0), torch.full((4,), 9 / 4).double(), rtol=1e-3, atol=0)
    assert sinkhorn(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), 0.03, 3).isfinite().all()


def test_loss_is_that_of_a_slow_twin():
    task = JointClustering(TinyUNet(), augment=views(), **SMALL, agreement_weight=0.5, hidden_weight=2.0).double()
    batch = make_batch(task.region.size, batch=3)
    batch = batch.replace(image=batch.image.double())
    result = task(batch)
    prototypes = torch.nn.functional.normalize(task.prototypes, dim=1).detach().numpy()
    moved = [task.augment(batch, STACK, view) for view in (0, 1)]
    seen = [usable(view.valid_mask(), 3) for view, _ in moved]
    assert 0.6 < torch.stack(seen).float().mean() < 1, "views that reach beyond what was read"
    scores, codes, wholes, hidden = [], [], [], []
    with torch.no_grad():
        slabs = [torch.stack([v.image[:, :, 4 * s : 4 * s + 4] for s in range(3)], 1) for v, _ in moved]
        pooled = [task.backbone.pool(task.backbone.encode(x.flatten(0, 1))).unflatten(0, (3, 3)) for x in slabs]
        every = torch.cat([x[s] for x, s in zip(pooled, seen)])
        for number in (0, 1):
            z = task.projector((pooled[number] - every.mean(0)) / every.std(0, correction=0))
            z = torch.nn.functional.normalize(z, dim=-1)
            whole = torch.nn.functional.normalize(task.attention(z, seen[number])[0], dim=-1)
            scores.append(z.numpy() @ prototypes.T)
            wholes.append(whole.numpy() @ prototypes.T)
            codes.append(sinkhorn(torch.from_numpy(scores[-1]).flatten(0, 1), 0.05, 3).view(3, 3, 6).numpy())
            drawn = draw_hidden(0.3, 3, torch_generators(batch.seed, "hidden", number))
            predicted = torch.nn.functional.normalize(task.predict(task.attention(z, seen[number], drawn)[1]), dim=-1)
            apart, counted = (1 - (predicted * z).sum(-1)).numpy(), (drawn & seen[number]).numpy()
            hidden += [apart[b][counted[b]].mean() if counted[b].any() else 0.0 for b in range(3)]

    def cost(score: np.ndarray, code: np.ndarray) -> float:
        return float(-(code * (score / 0.1 - np.log(np.exp(score / 0.1).sum()))).sum())

    slices, agreement = [], []
    for v, o in ((0, 1), (1, 0)):
        index, inside = same_slab(SIZE, 3, moved[v][1], moved[o][1])
        per_sample = []
        for b in range(3):
            both = inside[b] & seen[v][b] & seen[o][b, index[b]]
            found = [cost(scores[v][b, s], codes[o][b, index[b, s]]) for s in range(3) if both[s]]
            per_sample.append(np.mean(found) if found else 0.0)
            agreement.append(cost(wholes[v][b], codes[o][b][seen[o][b].numpy()].mean(0)))
        slices.append(np.mean(per_sample))
    for name, expected in (("slices", slices), ("agreement", agreement), ("hidden", hidden)):
        assert result[name].item() == pytest.approx(np.mean(expected), rel=1e-9), name
    total = np.mean(slices) + 0.5 * np.mean(agreement) + 2 * np.mean(hidden)
    assert result["loss"].item() == pytest.approx(total, rel=1e-9)


def test_slabs_are_encoded_alone():
    stack = torch.arange(2 * 1 * 12 * 8 * 12, dtype=torch.float32).view(2, 1, 12, 8, 12)
    slabs = cut(stack, 3)
    assert torch.equal(slabs[4], stack[1, :, 4:8]) and slabs.shape == (6, 1, 4, 8, 12)
    task = JointClustering(TinyUNet(), augment=views(), **SMALL)
    seen = []
    encode = task.backbone.encode
    task.backbone.encode = lambda x: seen.append(x) or encode(x)  # type: ignore[func-returns-value, method-assign]
    task(make_batch(task.region.size, batch=2))
    assert seen[0].shape == (2 * 2 * 3, 1, *SIZE)


@pytest.mark.parametrize("change", [{"p_flip": 0.5}, {"p_rotation": 1, "rotation": 20}, {"p_scale": 1, "shift": 0.3}])
def test_slabs_of_two_views_show_the_same_place(change):
    """Heights are painted into the image: slabs that are matched show one height, to half a slab and scaling."""
    augment = Compose([SpatialTransform(**{"p_flip": 0, "p_rotation": 0, "p_scale": 0, "max_reach": 3} | change)])
    batch = make_batch(augment.reach(STACK), batch=16, spacing=(1.0, 1.0, 1.0))
    heights = torch.arange(batch.size[0], dtype=torch.float32)[:, None, None].expand(batch.size)
    batch = batch.replace(image=heights.expand(16, 1, -1, -1, -1).clone())
    (first, here), (second, there) = (augment(batch, STACK, view) for view in (0, 1))
    index, inside = same_slab(SIZE, 3, here, there)
    found = [cut(view.image, 3).mean((1, 2, 3, 4)).view(16, 3) for view in (first, second)]
    apart = (found[0] - found[1].gather(1, index)).abs()[inside]
    assert inside.float().mean() > 0.6 and apart.max() < 2 * 1.25 + 0.5
    if "p_flip" in change:
        assert torch.equal(apart, torch.zeros_like(apart)) and (index[:, 0] == 2).any() and (index[:, 0] == 0).any()


def test_views_that_share_nothing_are_not_matched():
    far = Geometry.identity(1, STACK)
    far.matrix[:, 0, 3] = 40
    assert not same_slab(SIZE, 3, Geometry.identity(1, STACK), far)[1].any()
    index, inside = same_slab(SIZE, 3, Geometry.identity(1, STACK), Geometry.identity(1, STACK))
    assert index.tolist() == [[0, 1, 2]] and inside.all()


def test_a_hidden_slab_does_not_take_part_in_its_prediction():
    torch.manual_seed(0)
    attention = SlabAttention(8, 4, depth=2, heads=2)
    embedded = torch.randn((2, 4, 8), requires_grad=True)
    hidden = torch.tensor([[True, False, False, False], [False, True, True, False]])
    seen = torch.tensor([[True, True, True, False], [True, True, True, True]])
    _, predicted = attention(embedded, seen, hidden)
    (predicted[hidden] * torch.randn(8)).sum().backward()
    assert embedded.grad is not None
    reached = (embedded.grad != 0).any(-1)
    assert torch.equal(reached, seen & ~hidden), "the others that are seen, and they alone"


def test_an_exact_share_of_the_slabs_is_hidden_and_never_all():
    for share, count in ((0.0, 1), (0.5, 2), (1.0, 4)):
        drawn = draw_hidden(share, 5, [torch.Generator().manual_seed(n) for n in range(8)])
        assert (drawn.sum(1) == count).all() and drawn.shape == (8, 5) and len(drawn.unique(dim=0)) > 2


def test_names_of_the_prototypes_do_not_matter():
    task = JointClustering(TinyUNet(), augment=views(), **SMALL)
    batch = make_batch(task.region.size, batch=2)
    expected = task(batch)["loss"]
    with torch.no_grad():
        task.prototypes.copy_(3 * task.prototypes[torch.tensor([4, 2, 0, 5, 1, 3])])
    torch.testing.assert_close(task(batch)["loss"], expected)


def test_slabs_of_padding_are_left_out():
    valid = torch.zeros((1, 1, *STACK), dtype=torch.bool)
    valid[:, :, :6] = True
    assert usable(valid, 3).tolist() == [[True, True, False]]
    task = JointClustering(TinyUNet(), augment=Compose([GaussianNoise(p=1)]), **SMALL)
    batch = make_batch(STACK, batch=2).replace(valid=torch.zeros((2, 1, *STACK), dtype=torch.bool))
    result = task(batch)
    result["loss"].backward()
    assert result["loss"] == 0 and result["matched_share"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())


@pytest.mark.parametrize(
    ("key", "value"),
    [("slices", 1), ("prototypes", 1), ("temperature", 0.0), ("epsilon", 0.01), ("iterations", 0), ("heads", 0),
     ("agreement_weight", -1.0), ("hidden_share", 1.5), ("hidden_weight", -1.0), ("depth", 0), ("out_dim", 7)],
)  # fmt: skip
def test_values_out_of_range_name_their_key(key, value):
    with pytest.raises(ValueError, match=f"^{key}"):
        JointClustering(TinyUNet(), augment=views(), **SMALL | {key: value})
