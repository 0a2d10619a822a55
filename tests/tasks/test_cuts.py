"""CUTS: pairs that are near, similar and valid; SSIM against scikit-image; losses against slow twins; the suite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity as reference

from ssl3d.augment import Compose, SpatialTransform
from ssl3d.models.resnet import ResNet
from ssl3d.models.vit import ViT
from ssl3d.tasks.cuts import CUTS
from ssl3d.tasks.local_patches import PatchPairs, in_clip_window, patch_offsets, patches_at, structural_similarity
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE = (8, 16, 24)
SMALL = {"patch_size": SIZE, "local_patch": (1, 3, 3), "anchors": 8, "out_dim": 16}
AUGMENT = Compose([SpatialTransform(p_rotation=1)])


class TestCUTS(TaskTests):
    def make_task(self):
        return CUTS(TinyUNet(2), **SMALL, augment=AUGMENT)

    def make_batch(self, task):
        return make_batch(task.region.size, batch=2, channels=2, padded=4)


class TestOnTokens(TestCUTS):
    overfit_lr = 3e-3

    def make_task(self):
        return CUTS(ViT("tiny", in_channels=2, patch_size=(2, 4, 4)), **SMALL, contrast_weight=0.1)


def test_similarity_is_that_of_scikit_image():
    generator = torch.Generator().manual_seed(0)
    first = torch.rand((4, 2, 125), generator=generator, dtype=torch.float64)
    second = 0.7 * first + 0.3 * torch.rand((4, 2, 125), generator=generator, dtype=torch.float64)
    found = structural_similarity(first, second)
    for n in range(4):
        cubes = [x[n].reshape(2, 5, 5, 5).numpy() for x in (first, second)]
        expected = reference(
            *cubes, win_size=5, data_range=1.0, channel_axis=0, use_sample_covariance=False, gaussian_weights=False
        )
        assert found[n].item() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(structural_similarity(first, first), torch.ones(4).double())


def test_patches_are_boxes_of_the_image():
    image = torch.arange(2 * 3 * 5 * 7 * 9, dtype=torch.float32).view(2, 3, 5, 7, 9)
    centres = torch.tensor([[[1, 3, 4], [2, 2, 6]], [[3, 4, 2], [1, 2, 3]]])
    found = patches_at(image, centres, (3, 5, 5))
    for b in range(2):
        for k, (d, h, w) in enumerate(centres[b].tolist()):
            box = image[b, :, d - 1 : d + 2, h - 2 : h + 3, w - 2 : w + 3]
            assert torch.equal(found[b, k], box.flatten(1))
    assert patch_offsets((1, 3, 1)).tolist() == [[0, -1, 0], [0, 0, 0], [0, 1, 0]]


def test_partners_are_near_similar_and_valid_and_none_was_passed_over():
    task = CUTS(TinyUNet(2), **SMALL | {"anchors": 24, "near": 3.0, "similar": 0.6})
    batch = make_batch(SIZE, batch=3, channels=2, padded=9)
    pairs = task.sampler.pairs(batch)
    assert 0.1 < pairs.paired.float().mean() < 1 and not (pairs.paired & ~pairs.seen).any()
    _, shifts = task.sampler.draw(batch.seed)
    image, spacing = in_clip_window(batch), np.array([3.0, 1.0, 0.8])

    def box(b: int, place: np.ndarray) -> torch.Tensor:
        d, h, w = place.tolist()
        return image[b, :, d, h - 1 : h + 2, w - 1 : w + 2].flatten(1)

    for b in range(3):
        for k in range(24):
            anchor = pairs.anchor[b, k].numpy()
            assert (anchor[1:] >= 1).all() and (anchor <= np.array([7, 14, 22])).all()
            assert bool(pairs.seen[b, k]) == bool(anchor[2] + 1 < 15)
            found = None
            for shift in shifts[b, k].numpy():
                place = np.clip(anchor + np.round(shift * 3.0 / spacing).astype(int), [0, 1, 1], [7, 14, 22])
                apart = np.linalg.norm((place - anchor) * spacing)
                fits = 0 < apart <= 3.0 and place[2] + 1 < 15 and pairs.seen[b, k]
                if found is None and fits and structural_similarity(box(b, anchor), box(b, place)) >= 0.6:
                    found = place
            assert bool(pairs.paired[b, k]) == (found is not None)
            if found is not None:
                assert pairs.partner[b, k].tolist() == found.tolist()


def drawn_pairs() -> tuple[PatchPairs, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs of 6 anchors, embeddings of both, and the spacing; some are missing."""
    generator = torch.Generator().manual_seed(1)
    anchor = torch.randint(0, 20, (2, 6, 3), generator=generator)
    partner = anchor + torch.randint(-1, 2, (2, 6, 3), generator=generator)
    seen, paired = torch.ones((2, 6), dtype=torch.bool), torch.ones((2, 6), dtype=torch.bool)
    seen[0, 2] = paired[0, 2] = paired[0, 4] = paired[1, 5] = False
    embedded = torch.randn((2, 2, 6, 5), generator=generator, dtype=torch.float64)
    return PatchPairs(anchor, partner, seen, paired), embedded[0], embedded[1], torch.tensor([[3.0, 1.0, 0.8]] * 2)


def test_contrast_is_that_of_a_slow_twin():
    task = CUTS(TinyUNet(), **SMALL | {"near": 9.0, "temperature": 0.3})
    pairs, anchors, partners, spacing = drawn_pairs()
    found = task.contrast_pairs(anchors, partners, pairs, spacing).item()

    def similar(x: np.ndarray, y: np.ndarray) -> float:
        return np.exp(x @ y / np.linalg.norm(x) / np.linalg.norm(y) / 0.3)

    means, left_out = [], 0
    for b in range(2):
        costs = []
        for i in range(6):
            if not pairs.paired[b, i]:
                continue
            x, total = anchors[b, i].numpy(), 0.0
            others = [(pairs.partner, partners, pairs.paired), (pairs.anchor, anchors, pairs.seen)]
            for place, embedded, there in others:
                for j in range(6):
                    apart = ((pairs.anchor[b, i] - place[b, j]) * spacing[b]).norm()
                    left_out += bool(j != i and there[b, j] and apart <= 9.0)
                    if j != i and there[b, j] and apart > 9.0:
                        total += similar(x, embedded[b, j].numpy())
            own = similar(x, partners[b, i].numpy())
            costs.append(-np.log(own / (own + total)))
        means.append(np.mean(costs))
    assert found == pytest.approx(np.mean(means), rel=1e-9) and left_out > 0


def test_numbering_of_the_anchors_and_order_of_the_axes_do_not_matter():
    task = CUTS(TinyUNet(), **SMALL | {"near": 9.0})
    pairs, anchors, partners, spacing = drawn_pairs()
    expected = task.contrast_pairs(anchors, partners, pairs, spacing)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    renumbered = PatchPairs(*(x[:, order] for x in (pairs.anchor, pairs.partner, pairs.seen, pairs.paired)))
    torch.testing.assert_close(
        task.contrast_pairs(anchors[:, order], partners[:, order], renumbered, spacing), expected
    )
    turned = PatchPairs(pairs.anchor.flip(-1), pairs.partner.flip(-1), pairs.seen, pairs.paired)
    torch.testing.assert_close(task.contrast_pairs(anchors, partners, turned, spacing.flip(-1)), expected)


def test_loss_weighs_contrast_and_reconstruction():
    task = CUTS(TinyUNet(), **SMALL | {"contrast_weight": 0.3}).eval()
    batch = make_batch(SIZE, batch=2, padded=4)
    result = task(batch)
    assert result["loss"].item() == pytest.approx(0.3 * result["contrast"].item() + 0.7 * result["rebuilt"].item())
    pairs = task.sampler.pairs(batch)
    with torch.no_grad():
        decoded = task.backbone.decode(task.backbone.encode(batch.image))[0]
        means = []
        for b in range(2):
            errors = []
            for (d, h, w), seen in zip(pairs.anchor[b].tolist(), pairs.seen[b].tolist()):
                if seen:
                    drawn = task.rebuild(task.embed(decoded[b, :, d, h, w])).numpy()
                    errors.append((drawn - batch.image[b, 0, d, h - 1 : h + 2, w - 1 : w + 2].flatten().numpy()) ** 2)
            means.append(np.mean(errors))
    assert result["rebuilt"].item() == pytest.approx(np.mean(means), rel=1e-5)


def test_an_image_of_air_alone_costs_nothing_and_breaks_nothing():
    task = CUTS(TinyUNet(), **SMALL)
    batch = make_batch(SIZE, batch=2, padded=24)
    result = task(batch, preview=True)
    result["loss"].backward()
    assert result["loss"] == 0 and result["paired_share"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())


def test_clusters_of_two_halves_are_the_halves():
    """A network that passes the image on: the coarse picture has the image's two greys."""
    task = CUTS(TinyUNet(), **SMALL).eval()
    batch = make_batch(SIZE, batch=1)
    halves = torch.full_like(batch.image, -1.0)
    halves[..., 12:] = 1.0
    decoded = torch.cat([halves, 1 - halves.abs(), halves, halves, halves, halves, halves, -halves], dim=1)
    pictures = task.pictures(batch.replace(image=halves), decoded)
    assert set(pictures) == {"preview/image"} | {f"preview/clusters_{x}" for x in ("fine", "medium", "coarse")}
    for name, picture in pictures.items():
        assert picture.shape == (1, 16, 24)
        torch.testing.assert_close(picture, (halves[:, 0, 4] + 1) / 2, msg=name)


@pytest.mark.parametrize(
    ("key", "value"),
    [("local_patch", 4), ("local_patch", 9), ("anchors", 1), ("candidates", 0), ("out_dim", 0), ("near", 0.0),
     ("temperature", 0.0), ("contrast_weight", 1.5), ("similar", 2.0)],
)  # fmt: skip
def test_values_out_of_range_name_their_key(key, value):
    with pytest.raises(ValueError, match=f"^{key}={value}"):
        CUTS(TinyUNet(), **SMALL | {key: value})


def test_a_backbone_without_a_decoder_is_refused():
    with pytest.raises(ValueError, match="task CUTS: ResNet has no decoder"):
        CUTS(ResNet(depth=10, width=0.125), patch_size=(32, 32, 64))
