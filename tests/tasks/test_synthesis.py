"""Synthesis: label maps and their two views, which voxels are compared, and the loss against its slow twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl3d.augment import Compose, GaussianBlur, GaussianNoise, SpatialTransform
from ssl3d.losses.voxel_contrast import voxel_contrast
from ssl3d.models.resnet import ResNet
from ssl3d.models.vit import ViT
from ssl3d.synth import Scene
from ssl3d.synth.scene import COUNT, SIDES
from ssl3d.tasks.synthesis import Synthesis, at_centres, compared_scales
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE = (8, 16, 24)
SMALL = {"voxels": 64, "hidden_dim": 16, "out_dim": 8}


class TestSynthesis(TaskTests):
    def make_task(self):
        return Synthesis(TinyUNet(), SIZE, **SMALL)


class TestSynthesisOfAStoresLabels(TaskTests):
    """Two channels, moved maps, artefacts, one label far larger than the other."""

    waits_for_the_gpu = True

    def make_task(self):
        moved = Compose([SpatialTransform(p_rotation=1), GaussianBlur(p=1), GaussianNoise(p=1)])
        return Synthesis(TinyUNet(2), SIZE, labels="store", artefacts=moved, **SMALL)

    def make_batch(self, task):
        return make_batch(task.region.size, channels=2, padded=2, labels=True)


class TestSynthesisOnTokens(TaskTests):
    overfit_lr = 3e-3

    def make_task(self):
        return Synthesis(ViT("tiny", patch_size=(4, 8, 8)), SIZE, balance=1.0, **SMALL)


def twin(embedded: np.ndarray, label: np.ndarray, valid: np.ndarray, temperature: float) -> tuple[float, float]:
    """(loss, matched), anchor by anchor."""
    losses, matches = [], []
    for rows, names, use in zip(embedded, label, valid):
        views, voxels = rows.shape[:2]
        z = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        members = [(v, k) for v in range(views) for k in range(voxels) if use[k]]
        costs, hits = [], []
        for v, k in members:
            others = [m for m in members if m != (v, k)]
            exponentials = {m: np.exp(z[v, k] @ z[m] / temperature) for m in others}
            positives = [m for m in others if names[m[1]] == names[k]]
            if not positives:
                continue
            total = sum(exponentials.values())
            cost = np.mean([-np.log(exponentials[m] / total) for m in positives])
            costs.append(cost - np.log(len(positives)))
            best = max((m for m in others if m[0] != v), key=lambda m: exponentials[m])
            hits.append(names[best[1]] == names[k])
        if costs:
            losses.append(np.mean(costs))
            matches.append(np.mean(hits))
    return float(np.mean(losses)), float(np.mean(matches))


@pytest.fixture
def voxels():
    """Embeddings (3,2,9,5), labels and validity (3,9); one sample has no valid voxel."""
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn((3, 2, 9, 5), generator=generator, dtype=torch.float64)
    valid = torch.rand((3, 9), generator=generator) < 0.8
    valid[2] = False
    return embedded, torch.randint(4, (3, 9), generator=generator), valid


def test_loss_equals_its_numpy_twin(voxels):
    embedded, label, valid = voxels
    found = voxel_contrast(embedded, label, valid, 0.33)
    expected = twin(embedded.numpy(), label.numpy(), valid.numpy(), 0.33)
    np.testing.assert_allclose([found.loss.item(), found.matched.item()], expected, rtol=1e-12)


def test_loss_ignores_the_names_of_labels(voxels):
    embedded, label, valid = voxels
    renamed = torch.tensor([17, 3, 99, 0])[label]
    assert torch.equal(
        voxel_contrast(embedded, label, valid, 0.33).loss, voxel_contrast(embedded, renamed, valid, 0.33).loss
    )


def test_loss_is_lower_when_features_of_a_label_coincide(voxels):
    embedded, label, valid = voxels
    together = torch.eye(5, dtype=torch.float64)[label][:, None].expand(-1, 2, -1, -1)
    good = voxel_contrast(together, label, valid, 0.33)
    assert 0 < good.loss < voxel_contrast(embedded, label, valid, 0.33).loss and good.matched == 1
    all_alike = voxel_contrast(torch.ones_like(embedded), label, valid, 0.33)
    assert good.loss < all_alike.loss


def test_a_voxel_is_no_pair_with_itself(voxels):
    """One voxel in two views: each is the only positive, and the only member of the denominator, of the other."""
    embedded, label, _ = voxels
    one = embedded[:1, :, :1].requires_grad_()
    found = voxel_contrast(one, label[:1, :1], torch.ones((1, 1), dtype=torch.bool), 0.33)
    found.loss.backward()
    assert found.loss == 0 and (one.grad == 0).all()


def test_invalid_voxels_change_nothing(voxels):
    embedded, label, valid = voxels
    changed = torch.where(valid[:, None, :, None], embedded, torch.nan_to_num(embedded * 1e3)).requires_grad_()
    loss = voxel_contrast(changed, label, valid, 0.33).loss
    loss.backward()
    assert torch.equal(loss, voxel_contrast(embedded, label, valid, 0.33).loss)
    assert (changed.grad.movedim(2, 1)[~valid] == 0).all()


def test_both_views_show_one_map_and_labels_have_no_gaps():
    """Two looks differ, and each explains far more of its image by the map than the map of another sample does."""
    task, batch = Synthesis(TinyUNet(), (24, 32, 40), **SMALL), make_batch((24, 32, 40), batch=2)
    label, valid, counts = task.label_maps(batch)
    views = [task.view(batch, label, valid, counts, number) for number in (0, 1)]
    assert not torch.equal(*views) and not torch.equal(label[0], label[1])
    for b in (0, 1):
        assert label[b].unique().tolist() == list(range(int(label[b].max()) + 1)) and label[b].max() >= 5
        for view in views:
            assert explained(view[b, 0], label[b, 0]) > explained(view[b, 0], label[1 - b, 0]) + 0.2
    again = Synthesis(TinyUNet(), (24, 32, 40), **SMALL)
    assert torch.equal(again.label_maps(batch)[0], label)
    assert torch.equal(again.view(batch, label, valid, counts, 0), views[0])
    other = batch.replace(seed=batch.seed + 1)
    assert not torch.equal(task.label_maps(other)[0], label)


def explained(image: torch.Tensor, label: torch.Tensor) -> float:
    """Share of the variance of an image that the means of its labels explain."""
    means = [(image[label == k].mean(), (label == k).sum()) for k in label.unique()]
    return float(sum(n * (m - image.mean()) ** 2 for m, n in means) / (image - image.mean()).square().sum())


def test_maps_of_a_store_are_moved_with_their_validity():
    moved = Compose([SpatialTransform(p_rotation=1, rotation=40, max_reach=2)])
    task = Synthesis(TinyUNet(), SIZE, labels="store", artefacts=moved, **SMALL)
    batch = make_batch(task.region.size, labels=True, padded=6)
    expected, _ = moved(batch.replace(label=batch.label * 7 + 3), SIZE)
    label, valid, counts = task.label_maps(batch.replace(label=batch.label * 7 + 3))
    assert torch.equal(valid, expected.valid) and counts == [len(x.unique()) for x in expected.label]
    assert all(torch.equal(own.unique(return_inverse=True)[1], new) for own, new in zip(expected.label, label))
    with pytest.raises(ValueError, match="labels=store: the data has no labels"):
        task(batch.replace(label=None))


def test_cells_are_named_after_their_central_voxel():
    label = torch.arange(2 * 4 * 6 * 8).view(2, 1, 4, 6, 8)
    assert torch.equal(at_centres(label, (2, 3, 4)), label[:, 0, 1::2, 1::3, 2::4].flatten(1))
    assert torch.equal(at_centres(label, (1, 1, 1)), label.flatten(1))


@pytest.mark.parametrize(("balance", "share"), [(0.0, 0.9), (0.5, 0.75), (1.0, 0.5)])
def test_background_does_not_dominate(balance, share):
    """Of 90 % background and 10 % of one label, by how often each is drawn; none twice, none that is not valid."""
    task = Synthesis(TinyUNet(), SIZE, balance=balance, voxels=100, hidden_dim=8, out_dim=8)
    label = (torch.arange(40_000) % 10 == 0).long().expand(8, -1)
    valid = torch.arange(40_000).expand(8, -1) < 30_000
    where, chosen = task.draw(torch.arange(8), label, valid, 2, 0)
    assert chosen.all() and where.max() < 30_000 and all(len(w.unique()) == 100 for w in where)
    assert (label.gather(1, where) == 0).float().mean() == pytest.approx(share, abs=0.06)
    assert torch.equal(where, task.draw(torch.arange(8), label, valid, 2, 0)[0])
    few, some = task.draw(torch.arange(8), label, valid & (torch.arange(40_000) < 30), 2, 0)
    assert (some.sum(1) == 30).all() and few[some].max() < 30


def test_scales_are_the_decoders_and_the_coarser_of_the_encoder():
    unet = TinyUNet()
    assert compared_scales(unet) == ([8, 16], [(1, 1, 1), (2, 2, 2)])
    unet.decoder_channels = (8,)
    assert compared_scales(unet) == ([8, 16], [(1, 1, 1), (2, 2, 2)])
    alone = ResNet(10, width=0.125)
    assert compared_scales(alone) == (list(alone.channels), list(alone.strides))


@pytest.mark.parametrize(
    ("key", "value"),
    [("voxels", 1), ("balance", 1.5), ("temperature", 0.0), ("out_dim", 0), ("patch_size", (9, 16, 24)),
     ("artefacts", Compose([SpatialTransform()]))],
)  # fmt: skip
def test_values_out_of_range_name_their_key(key, value):
    with pytest.raises(ValueError, match=f"^{key}"):
        Synthesis(TinyUNet(), **{"patch_size": SIZE, **SMALL, key: value})


def test_a_scene_is_the_same_whatever_box_shows_it():
    scene = Scene.draw(np.random.default_rng(0), (40.0, 60.0, 50.0))
    axes = [np.arange(n) + 0.5 for n in (40, 60, 50)]
    whole = scene.label(axes)
    assert torch.equal(whole[5:20, 31:60, 7:9], scene.label([axes[0][5:20], axes[1][31:], axes[2][7:9]]))
    assert whole.min() >= 0 and whole.max() < scene.labels <= COUNT[1] + SIDES
