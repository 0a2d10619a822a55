"""2D kernels as 3D ones: what each of the three ways promises, on kernels and images that are not square or cubic."""

import pytest
import torch
from torch.nn import functional as F

from ssl3d.weights.inflate import channels, inflate

KERNEL = torch.randn(7, 2, 3, 3, generator=torch.Generator().manual_seed(0)).double()
IMAGE = torch.randn(1, 2, 6, 9, 12, generator=torch.Generator().manual_seed(1)).double()


def test_mean_gives_the_slices_answer_on_a_volume_of_equal_slices():
    flat = IMAGE[:, :, 0]
    found = F.conv3d(flat.unsqueeze(2).expand(-1, -1, 5, -1, -1), inflate(KERNEL, 3, "mean"))
    wanted = F.conv2d(flat, KERNEL)
    assert found.shape[2] == 3
    for slice_ in found.unbind(2):
        torch.testing.assert_close(slice_, wanted)


def test_centre_sees_every_slice_for_itself():
    found = F.conv3d(IMAGE, inflate(KERNEL, 3, "centre"), padding=(1, 0, 0))
    for depth in range(6):
        torch.testing.assert_close(found[:, :, depth], F.conv2d(IMAGE[:, :, depth], KERNEL))


def test_rotation_looks_along_the_three_planes_in_turn():
    found = F.conv3d(IMAGE, inflate(KERNEL, 3, "rotation"), padding=1)
    flat = F.conv3d(IMAGE, inflate(KERNEL, 3, "centre"), padding=1)
    coronal = F.conv3d(IMAGE.transpose(2, 3), inflate(KERNEL, 3, "centre"), padding=1).transpose(2, 3)
    sagittal = F.conv3d(IMAGE.permute(0, 1, 4, 2, 3), inflate(KERNEL, 3, "centre"), padding=1).permute(0, 1, 3, 4, 2)
    for plane, wanted in enumerate((flat, coronal, sagittal)):
        torch.testing.assert_close(found[:, plane::3], wanted[:, plane::3])


def test_all_ways_keep_the_sum_of_a_kernel():
    for how in ("mean", "centre", "rotation"):
        torch.testing.assert_close(inflate(KERNEL, 3, how).sum((2, 3, 4)), KERNEL.sum((2, 3)))
    assert inflate(KERNEL[..., :1, :1], 1, "rotation").shape == (7, 2, 1, 1, 1)


def test_a_kernel_that_is_no_cube_cannot_be_rotated():
    with pytest.raises(ValueError, match=r"\[5, 3, 3\] cannot be rotated"):
        inflate(KERNEL, 5, "rotation")


@pytest.mark.parametrize(("theirs", "mine"), [(1, 1), (1, 3), (3, 1), (3, 2), (4, 4)])
def test_equal_channels_give_what_equal_channels_gave(theirs, mine):
    weight = torch.randn(5, theirs, 3, 3, 3, generator=torch.Generator().manual_seed(2)).double()
    grey = IMAGE[:, :1]
    found = F.conv3d(grey.expand(-1, mine, -1, -1, -1), channels(weight, mine))
    torch.testing.assert_close(found, F.conv3d(grey.expand(-1, theirs, -1, -1, -1), weight))
    assert channels(weight, mine).shape[1] == mine
