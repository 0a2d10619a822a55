"""Intensity transforms: their effect, their independence of padding, their determinism per sample."""

from __future__ import annotations

import pytest
import torch

from ssl3d.augment import (
    Brightness,
    Compose,
    Contrast,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    IntensityTransform,
    LowResolution,
)
from ssl3d.augment.intensity import gaussian
from ssl3d.testing.toys import make_batch

SIZE = (12, 20, 16)
ALL = [GaussianNoise, GaussianBlur, Brightness, Contrast, Gamma, LowResolution]


def always(kind: type[IntensityTransform], **kwargs) -> Compose:
    if kind is LowResolution:
        kwargs["zoom"] = (0.5, 0.7)  # nearer to 1 nothing changes on a small image
    return Compose([kind(p=1.0, p_channel=1.0, **kwargs)])  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ALL)
def test_changes_valid_voxels_only(kind):
    batch = make_batch(SIZE, batch=3, channels=2, padded=4)
    assert batch.valid is not None
    valid = batch.valid.expand_as(batch.image)
    before = batch.image.clone()
    out, geometry = always(kind)(batch, SIZE)
    assert torch.equal(batch.image, before), "the caller's batch was changed"
    assert torch.equal(out.image[~valid], before[~valid])
    for b in range(3):
        for c in range(2):
            assert not torch.equal(out.image[b, c], before[b, c])
    assert out.image.dtype == torch.float32 and out.image.isfinite().all()
    assert torch.equal(geometry.matrix, torch.eye(4).repeat(3, 1, 1))


@pytest.mark.parametrize("kind", ALL)
def test_padding_enters_no_statistic_and_no_neighbour(kind):
    batch = make_batch(SIZE, batch=3, padded=5)
    assert batch.valid is not None
    poisoned = batch.replace(image=torch.where(batch.valid, batch.image, 1e4))
    clean, dirty = (always(kind)(b, SIZE)[0].image for b in (batch, poisoned))
    torch.testing.assert_close(clean[batch.valid], dirty[batch.valid], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ALL)
def test_a_volume_without_valid_voxels_stays_finite(kind):
    batch = make_batch(SIZE, padded=SIZE[2])
    out, _ = always(kind)(batch, SIZE)
    assert torch.equal(out.image, batch.image)


@pytest.mark.parametrize("kind", ALL)
def test_a_sample_depends_on_its_seed_alone(kind):
    batch = make_batch(SIZE, batch=6, channels=2, padded=3)
    augment = Compose([kind(), kind()])  # default probabilities
    state = torch.random.get_rng_state()
    together, _ = augment(batch, SIZE)
    order = torch.tensor([4, 1, 5])
    some, _ = augment(batch._map(lambda t: t[order]), SIZE)
    assert torch.equal(some.image, together.image[order])
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator was used"


def test_two_of_a_kind_and_two_views_draw_differently():
    batch = make_batch(SIZE)
    noise = GaussianNoise(std=(1.0, 1.0), p=1.0)
    once, twice = (Compose([noise] * n)(batch, SIZE)[0].image - batch.image for n in (1, 2))
    assert not torch.allclose(twice, 2 * once, atol=0.1)
    other = Compose([noise])(batch, SIZE, view=1)[0].image - batch.image
    assert not torch.allclose(other, once, atol=0.1)


def test_probabilities_are_kept():
    batch = make_batch((2, 2, 2), batch=400, channels=2)
    out, _ = Compose([Brightness(factor=(2.0, 2.0), p=0.5, p_channel=0.5)])(batch, (2, 2, 2))
    changed = (out.image != batch.image).flatten(2).any(2)
    assert abs(changed.float().mean().item() - 0.25) < 0.06


def test_noise_has_its_standard_deviation():
    batch = make_batch((16, 32, 32), batch=1)
    out, _ = Compose([GaussianNoise(std=(0.5, 0.5), p=1.0)])(batch, batch.size)
    difference = out.image - batch.image
    assert abs(difference.std().item() - 0.5) < 0.02 and abs(difference.mean().item()) < 0.02


def test_blur_is_a_gaussian():
    impulse = torch.zeros(21, 21, 21)
    impulse[10, 10, 10] = 1
    out = gaussian(impulse, sigma=1.5)
    offsets = (torch.arange(21) - 10.0) ** 2
    assert abs(out.sum().item() - 1) < 1e-5
    assert abs((out.sum((1, 2)) * offsets).sum().sqrt().item() - 1.5) < 0.02
    constant = make_batch(SIZE, padded=4).replace(image=torch.full((2, 1, *SIZE), 3.0))
    torch.testing.assert_close(always(GaussianBlur)(constant, SIZE)[0].image, constant.image)
    thin = torch.rand(1, 5, 9)
    assert gaussian(thin, 2.0).shape == thin.shape  # an axis shorter than the kernel


def test_contrast_keeps_mean_and_range_and_gamma_keeps_mean_and_deviation():
    batch = make_batch((16, 32, 24), batch=4)
    flat = batch.image.flatten(1)
    weaker = Compose([Contrast(factor=(0.5, 0.5), p=1.0)])(batch, batch.size)[0].image.flatten(1)
    torch.testing.assert_close(weaker.mean(1), flat.mean(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(weaker.std(1), flat.std(1) / 2, rtol=1e-4, atol=0)
    stronger = Compose([Contrast(factor=(3.0, 3.0), p=1.0)])(batch, batch.size)[0].image.flatten(1)
    assert (stronger.amax(1) <= flat.amax(1)).all() and (stronger.amin(1) >= flat.amin(1)).all()
    for p_invert in (0.0, 1.0):
        gamma = Compose([Gamma(gamma=(1.5, 1.5), p=1.0, p_invert=p_invert)])
        powered = gamma(batch, batch.size)[0].image.flatten(1)
        torch.testing.assert_close(powered.mean(1), flat.mean(1), rtol=0, atol=1e-4)
        torch.testing.assert_close(powered.std(1), flat.std(1), rtol=1e-3, atol=0)
        skew = ((powered - powered.mean(1, keepdim=True)) ** 3).mean() - (
            (flat - flat.mean(1, keepdim=True)) ** 3
        ).mean()
        assert skew > 0 if p_invert == 0 else skew < 0


def test_low_resolution_removes_detail():
    noise = make_batch((16, 16, 16)).replace(image=torch.randn(2, 1, 16, 16, 16))
    out = Compose([LowResolution(zoom=(0.5, 0.5), p=1.0, p_channel=1.0)])(noise, noise.size)[0].image
    assert out.diff(dim=4).square().mean() < 0.5 * noise.image.diff(dim=4).square().mean()
    same = Compose([LowResolution(zoom=(1.0, 1.0), p=1.0, p_channel=1.0)])(noise, noise.size)[0].image
    torch.testing.assert_close(same, noise.image)


@pytest.mark.parametrize(
    "kind, key, value",
    [
        (GaussianNoise, "std", (-0.1, 0.1)), (GaussianBlur, "sigma", (0.0, 1.0)), (Brightness, "factor", (2.0, 1.0)),
        (Contrast, "factor", (-1.0, 1.0)), (Gamma, "gamma", (0.0, 1.0)), (LowResolution, "zoom", (0.5, 1.5)),
        (Gamma, "p_invert", 2.0), (GaussianNoise, "p", -1.0), (GaussianNoise, "p_channel", 1.1),
        (Brightness, "shift", (1.0, 0.0)),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_key(kind, key, value):
    with pytest.raises(ValueError, match=rf"^{key}="):
        kind(**{key: value})
