"""LocalContrast: places matched through the geometry, stages, what is trained, and the suite."""

from __future__ import annotations

import pytest
import torch

from ssl3d.augment import Compose, GaussianNoise, SpatialTransform
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.vit import ViT
from ssl3d.tasks.local_contrast import LocalContrast, centre_height
from ssl3d.tasks.marks import mark, number
from ssl3d.tasks.matched_points import PointSampler, features_at
from ssl3d.testing.task import TaskTests
from ssl3d.testing.toys import TinyUNet, make_batch

SIZE = (8, 16, 24)
SMALL = {"patch_size": SIZE, "scale": 0, "hidden_dim": 16, "out_dim": 8, "count": 8, "min_distance": 2.0}


def views(**changes) -> Compose:
    shape = {"p_rotation": 1, "rotation": 15, "p_scale": 1, "scale": (0.8, 1.25), "shift": 0.2, "elastic": 3.0,
             "p_elastic": 1, "elastic_spacing": 16.0, "spacing": (3, 1, 0.8), "max_reach": 2}  # fmt: skip
    return Compose([SpatialTransform(**{**shape, **changes}), GaussianNoise(p=1)])


def task(**changes) -> LocalContrast:
    return LocalContrast(TinyUNet(), augment=views(), **{**SMALL, **changes})


class TestJoint(TaskTests):
    overfit_steps = 20

    def make_task(self):
        return LocalContrast(TinyUNet(2), augment=views(), sigma=0.02, **SMALL)

    def make_batch(self, task):
        return make_batch(task.region.size, batch=2, channels=2)


class TestGlobal(TestJoint):
    def make_task(self):
        return LocalContrast(TinyUNet(2), augment=views(), stage="global", pairs="GR", **SMALL)


class TestLocalWithFrozenEncoder(TestJoint):
    def make_task(self):
        return LocalContrast(TinyUNet(2), augment=views(), stage="local", freeze_encoder=True, **SMALL)


class TestAsPublished(TestJoint):
    """Views that differ in intensity alone, a lattice of places, hard parts, places of other scans as positives."""

    def make_task(self):
        published = {"partition": "hard", "parts": 10, "points": "lattice", "local_pairs": "LD", "plain_view": True}
        published |= {"nearest": 5, "min_distance": 0.0}
        return LocalContrast(TinyUNet(2), augment=Compose([GaussianNoise(p=1)]), **{**SMALL, **published})


class TestOnTokens(TestJoint):
    overfit_lr = 3e-3

    def make_task(self):
        backbone = ViT("tiny", in_channels=2, patch_size=(2, 4, 4))
        return LocalContrast(backbone, augment=views(), sigma=0.02, **SMALL)


def test_features_are_interpolated_between_the_centres_of_cells():
    """A linear function of the voxel, averaged over cells of a stride, is itself at every matched point."""
    stride, size = (1, 2, 4), (6, 16, 24)
    axes = [torch.arange(n, dtype=torch.float64) for n in size]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
    cells = torch.nn.functional.avg_pool3d(index, stride)
    sampler = PointSampler(size, stride, region=3, count=20, lattice=False)
    points = (sampler.draw(torch.tensor([5]))[:, :, None] + sampler.offsets).double()
    torch.testing.assert_close(features_at(cells, points, stride), points, rtol=0, atol=1e-5)


def test_places_lie_on_a_lattice_or_anywhere_and_whole():
    lattice = PointSampler(SIZE, (2, 2, 2), region=3, count=8, lattice=True)
    places = lattice.draw(torch.tensor([1, 2]))
    assert places.shape == (2, 35, 3) and torch.equal(places[0], places[1]) and len(places[0].unique(dim=0)) == 35
    torch.testing.assert_close(places[0].amin(0), torch.tensor([2.5, 2.5, 2.5]))
    torch.testing.assert_close(places[0].amax(0), torch.tensor([4.5, 12.5, 20.5]))
    anywhere = PointSampler(SIZE, (2, 2, 2), region=1, count=8, lattice=False).draw(torch.arange(50))
    assert anywhere.shape == (50, 32, 3) and anywhere.min() >= 0.5 and not torch.equal(anywhere[0], anywhere[1])
    assert (anywhere.amax((0, 1)) <= torch.tensor([6.5, 14.5, 22.5])).all() and anywhere[..., 2].max() > 21
    with pytest.raises(ValueError, match=r"^region=5"):
        PointSampler(SIZE, (2, 2, 2), region=5, count=8, lattice=False)


def test_views_of_intensity_alone_share_every_place():
    still = LocalContrast(TinyUNet(), augment=Compose([GaussianNoise(p=1)]), **{**SMALL, "points": "lattice"})
    batch = make_batch(still.region.size, batch=2)
    points = still.sampler.match(*still.views(batch))
    assert points.matched.all()
    torch.testing.assert_close(points.first, points.second)
    holed = make_batch(still.region.size, batch=2, padded=6)
    where = still.sampler.match(*still.views(holed))
    assert torch.equal(where.matched, (where.first[..., 2] < 17.5).all(-1)) and 0 < where.matched.sum() < 70


def test_what_only_one_view_shows_is_left_out():
    moving = LocalContrast(TinyUNet(), augment=views(shift=0.4, max_reach=3), **SMALL)
    batch = make_batch(moving.region.size, batch=12)
    points = moving.sampler.match(*moving.views(batch))
    inside = ((points.second >= 0) & (points.second <= torch.tensor(SIZE) - 1)).all(-1).all(-1)
    assert torch.equal(inside, points.matched) and 0.1 < inside.float().mean() < 1


def test_local_loss_reaches_only_the_cells_around_the_chosen_places():
    local = task(stage="local", region=3)
    batch = make_batch(local.region.size, batch=2)
    decoded = torch.randn((4, 8, *SIZE), requires_grad=True)
    moved, geometries = local.views(batch)
    points = local.sampler.match(moved, geometries)
    local.compare_places(decoded, batch, moved, geometries)["local"].backward()
    assert decoded.grad is not None
    reached = (decoded.grad != 0).any(1)
    allowed = torch.zeros_like(reached)
    for b in range(2):
        for v, where in enumerate((points.first, points.second)):
            for d, h, w in where[b][points.matched[b]].flatten(0, 1).tolist():
                box = (slice(int(x // 1), int(x // 1) + 2) for x in (d, h, w))
                allowed[(2 * v + b, *box)] = True
    assert not (reached & ~allowed).any() and reached.any() and not allowed.all()


def test_height_of_a_view_is_that_of_its_centre():
    moving = task()
    batch = make_batch(moving.region.size, batch=5)
    _, geometries = moving.views(batch)
    for geometry in geometries:
        points = geometry.source_points()[..., 0].double()
        middle = points[:, 3:5, 7:9, 11:13].mean((1, 2, 3))
        expected = (middle + batch.start[:, 0] + 0.5) / batch.volume_shape[:, 0]
        torch.testing.assert_close(centre_height(batch, geometry).double(), expected.clamp(0, 1), rtol=0, atol=2e-3)


@pytest.mark.parametrize("scale", [0, 1])
def test_decoder_scales_that_are_not_run_are_not_trained(scale):
    architecture = {"n_stages": 4, "features_per_stage": [8, 8, 16, 16], "n_blocks_per_stage": [1, 1, 1, 1]}
    backbone = ResEncUNet(arch_kwargs=architecture)
    local = LocalContrast(
        backbone, augment=views(), **{**SMALL, "patch_size": (8, 16, 32), "scale": scale, "region": 1}
    )
    local(make_batch(local.region.size))["loss"].backward()
    trained = {n for n, p in local.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in local.named_parameters() if p.grad is not None}
    still = sum(not p.requires_grad for p in local.backbone.parameters())
    assert (still == 0) == (scale == 0)


def test_a_frozen_encoder_keeps_its_statistics():
    backbone = TinyUNet()
    backbone.fine = torch.nn.Sequential(backbone.fine, torch.nn.BatchNorm3d(8))  # type: ignore[assignment]
    frozen = LocalContrast(backbone, augment=views(), stage="local", freeze_encoder=True, **SMALL).train()
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    result = frozen(make_batch(frozen.region.size))
    result["loss"].backward()
    assert all(torch.equal(v, before[k]) for k, v in frozen.state_dict().items())
    encoder = backbone.encoder_parameter_names()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == (name in encoder), name


def test_positives_of_other_scans_are_alike_in_place_and_never_of_the_same_scan():
    for changes in ({}, {"partition": "hard", "points": "lattice"}):
        local = task(local_pairs="LD", stage="local", **changes)
        batch = make_batch(local.region.size, batch=3)
        moved, geometries = local.views(batch)
        points = local.sampler.match(moved, geometries)
        count = points.matched.shape[1]
        weight = local.across(batch, points, geometries).view(3, 2, count, 3, 2, count)
        place = (points.source + batch.start[:, None] + 0.5) / batch.volume_shape[:, None]
        for b in range(3):
            assert (weight[b, :, :, b] == 0).all()
            c = (b + 1) % 3
            both = points.matched[b, :, None] & points.matched[c]
            if changes:
                height = [float(centre_height(batch, geometries[0])[i]) for i in (b, c)]
                same = int(height[0] * 4) == int(height[1] * 4)
                expected = torch.eye(count) * both * same
                assert torch.equal(weight[b, 0, :, c, 0], expected) and (weight[b, 0, :, c, 1] == 0).all()
            else:
                apart = (place[b][:, None] - place[c]).square().sum(-1)
                expected = torch.exp(-apart / (2 * 0.1**2)) * both
                for v, w in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    torch.testing.assert_close(weight[b, v, :, c, w], expected)


def test_numbers_mark_places_and_stay_inside():
    picture = torch.full((1, 120, 200), 0.5)
    places = torch.tensor([[[50.0, 100.0], [0.0, 199.0], [60.0, 30.0]]])
    marked = mark(picture, places, torch.tensor([[True, True, False]]))
    assert torch.equal(marked[0, 47:54, 98:103], number(1)) and torch.equal(marked[0, :7, 195:], number(2))
    assert (marked[0, :, :95] == 0.5).all() and (picture == 0.5).all()
    small = mark(picture[:, :12, :20], places / 10, torch.tensor([[True, False, False]]))
    assert small.shape == (1, 84, 140), "seven times as large, so that a number hides little"
    row, column = round(5.5 * 7 - 0.5), round(10.5 * 7 - 0.5)
    assert torch.equal(small[0, row - 3 : row + 4, column - 2 : column + 3], number(1))


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("sigma=0", {"sigma": 0}), ("temperature=-1", {"temperature": -1}), ("parts=0", {"parts": 0}),
        ("region=2", {"region": 2}), ("count=1", {"count": 1}), ("nearest=-1", {"nearest": -1}),
        ("freeze_encoder=True", {"freeze_encoder": True}), ("scale=2", {"scale": 2}),
        ("points=random", {"local_pairs": "LD", "partition": "hard"}), ("patch_size", {"patch_size": (7, 16, 24)}),
        ("min_distance=-1", {"min_distance": -1}), ("local_weight=-1", {"local_weight": -1}),
        ("augment", {"augment": Compose()}),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(key, changes):
    with pytest.raises(ValueError, match=f"^{key}"):
        LocalContrast(TinyUNet(), **{"augment": views(), **SMALL, **changes})


def test_a_single_scan_cannot_be_compared():
    one = task()
    with pytest.raises(ValueError, match=r"^data.batch_size: LocalContrast"):
        one(make_batch(one.region.size, batch=1))
    local = task(stage="local")
    assert local(make_batch(local.region.size, batch=1))["loss"].isfinite()


def test_built_where_no_gradients_are_wanted_it_trains_the_same_parameters():
    with torch.no_grad():
        built = task(stage="local")
    trained = [{name for name, p in t.named_parameters() if p.requires_grad} for t in (built, task(stage="local"))]
    assert trained[0] == trained[1] and trained[0]
