"""Quality on real scans: what each of them is taken for, what a defacing leaves, which copies are found."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from preprocessing.geometry import Scan, canonical
from preprocessing.masks import looks_like_labels
from preprocessing.modality import infer
from preprocessing.unmeasured import blanked
from ssl3d.data.looks import NEAR, Looks

pytestmark = pytest.mark.slow

# file: (modality by its values alone, sure of it)
SCANS = {
    "ct_acrin_nsclc_ge/acrin_nsclc_042_ct.nii.gz": ("ct", True),
    "ct_qin_lung_philips/qin_lung_ct_2x.nii.gz": ("ct", True),
    "ct_head_invesalius/cranium_ct.nii.gz": ("ct", True),
    "ct_mr_totalsegmentator/example_ct.nii.gz": ("ct", True),
    "ct_mr_totalsegmentator/aorta/ct_cropped.nii.gz": ("ct", True),
    "ct_mr_totalsegmentator/pulmonary/ct_cropped.nii.gz": ("ct", True),
    "ct_mr_totalsegmentator/example_mr_sm.nii.gz": ("mr", True),
    "mri_niivue/MR_Gd.nii.gz": ("mr", True),
    "mri_niivue/vs_seg_001_t1c_2x2.nii.gz": ("mr", True),
    "mri_colin27_mricron/ch2.nii.gz": ("mr", False),  # 8 bits, as a windowed CT has
    "mri_mni152_nilearn/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz": ("mr", False),
    "mri_mni152_nilearn/mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz": ("mr", False),  # a probability map
    "odd/nifti/zstat_big_endian.nii.gz": ("mr", False),  # a statistic
    "odd/nifti/anatomical_big_endian_int16.nii": ("mr", True),
}
MASKS = (
    "mri_colin27_mricron/aal.nii.gz",
    "ct_mr_totalsegmentator/example_seg.nii.gz",
    "ct_mr_totalsegmentator/example_seg_mr.nii.gz",
    "ct_mr_totalsegmentator/aorta/aorta.nii.gz",
    "ct_mr_totalsegmentator/aorta/T710_renal.nii.gz",
    "ct_mr_totalsegmentator/aorta/T716_aorta_true_false_lumen.nii.gz",
    "ct_mr_totalsegmentator/pulmonary/pulmonary_artery.nii.gz",
)


def _array(file):
    return np.asarray(nib.load(file).dataobj).T


@pytest.mark.parametrize("name", SCANS)
def test_scans_are_what_they_are(data, name):
    values = _array(data / name)
    guess = infer(values)
    assert (guess.modality, not guess.unsure) == SCANS[name]
    assert not looks_like_labels(values)


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_masks(data, name):
    assert looks_like_labels(_array(data / name))


def test_a_windowed_ct_has_no_hu(data):
    import SimpleITK as sitk

    values = sitk.GetArrayFromImage(sitk.ReadImage(str(data / "odd" / "nrrd_mha" / "LIDC2_uint8.mha")))
    guess = infer(values)
    assert guess.modality == "mr" and guess.unsure and not looks_like_labels(values)


def test_no_hippocampus_is_ct_or_a_mask_and_every_label_of_one_is(data):
    task = data / "Task04_Hippocampus"
    images = sorted((task / "imagesTr").glob("hippo*.nii.gz"))
    assert len(images) == 174
    for file in images:
        values = _array(file)
        assert infer(values).modality == "mr" and not looks_like_labels(values) and blanked(values, "mr") is None
        assert looks_like_labels(_array(task / "labelsTr" / file.name))


def test_the_face_that_was_blanked_is_not_valid(data):
    image = nib.load(data / "dicom_mr_studyforrest" / "studyforrest_t1_2x.nii.gz")
    head = canonical(Scan(np.asarray(image.dataobj)[None], image.affine)).data[0]
    found = blanked(head, "mr")
    assert found is not None and (head[found] == 0).all()
    z, y, x = np.nonzero(~found)
    low, front = slice(z.min(), int(np.quantile(z, 0.35))), slice(y.min(), int(np.quantile(y, 0.25)))
    across = slice(*np.quantile(x, (0.3, 0.7)).astype(int))
    assert found[low, front, across].mean() > 0.3  # where the face was, inside the head's box
    brain = tuple(slice(*np.quantile(axis, (0.45, 0.7)).astype(int)) for axis in (z, y, x))
    assert found[brain].mean() < 0.01


def test_a_whole_head_on_a_grid_turned_against_it_is_the_same_scan(data, look_of):
    image = nib.load(data / "mri_niivue" / "vs_seg_001_t1c_2x2.nii.gz")
    array, affine = np.asarray(image.dataobj).astype(np.float32)[::2, ::2], image.affine @ np.diag([2, 2, 1, 1])
    angle = np.deg2rad(18)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    shape = np.ceil(np.array(array.shape) * [1.4, 1.4, 1]).astype(int)
    turned = np.eye(4)
    turned[:3, :3] = turn @ affine[:3, :3]
    centre = (affine @ np.append((np.array(array.shape) - 1) / 2, 1))[:3]
    turned[:3, 3] = centre - turned[:3, :3] @ ((shape - 1) / 2)
    grid = np.stack([*np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), np.ones(shape)])
    places = np.einsum("ij,j...->i...", np.linalg.inv(affine) @ turned, grid)[:3]
    copy = ndimage.map_coordinates(array, places, order=1, cval=0).astype(np.float32)
    thumbnails, index = look_of({"one": (array + 1, affine), "two": (copy, turned)})
    assert Looks(thumbnails, index, np.arange(2)).correlation(0, 1) > NEAR
