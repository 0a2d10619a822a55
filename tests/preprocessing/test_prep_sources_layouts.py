"""Every layout: what is made of its files, whose they are, which is whose label, and what is refused why."""

from pathlib import Path

import numpy as np
import pytest
import trees_prep as trees
from tests_prep import save, smooth

from preprocessing import convert
from preprocessing.archives import Scratch
from preprocessing.codes import settle_codes
from preprocessing.plan import find_sources
from ssl3d.data.store import open_store

KEY = b"a key of the tests, no secret"


def find(*arguments, said=None, store=Path("nowhere.zarr")):
    """The sources that a run would find."""
    with Scratch(store, rehearsal=True) as scratch:
        return find_sources(arguments, KEY, [store], scratch, (said if said is not None else []).append)


def good(sources):
    return {source.id: source for source in sources if source.problem is None}


def refused(sources):
    return {source.shown: source.problem.reason for source in sources if source.problem is not None}


def test_decathlon(tmp_path):
    said = []
    sources = good(find(trees.decathlon(tmp_path / "Task05_Prostate"), said=said))
    assert said == ["found 3 volumes in Task05_Prostate (MSD): 3 subjects, 2 labelled"]
    assert sources.keys() == {"prostate_00", "prostate_01", "prostate_03"}
    first = sources["prostate_00"]
    assert (first.subject, first.session, first.frames) == ("prostate_00", "prostate_00", 1)
    assert first.channels and first.modality == ["mr", "mr"] and first.classes == {0: "background", 1: "PZ"}
    assert first.label == tmp_path / "Task05_Prostate/labelsTr/prostate_00.nii.gz"
    assert sources["prostate_03"].label is None


def test_nnunet(tmp_path):
    said = []
    sources = good(find(trees.nnunet(tmp_path / "Dataset001_X"), said=said))
    assert said == ["found 2 volumes in Dataset001_X (nnU-Net): 2 subjects, 2 labelled"]
    assert [path.name for path in sources["case_a"].paths] == ["case_a_0000.nii.gz", "case_a_0001.nii.gz"]
    assert sources["case_b"].modality == ["mr", "ct"] and sources["case_b"].labelled


def test_bids(tmp_path):
    said = []
    root = trees.bids(tmp_path / "ds000001")
    sources = find(root, said=said)
    found = good(sources)
    assert said == [
        f"left out {root}/derivatives (BIDS): name the folder itself to convert it",
        "found 6 volumes in ds000001 (BIDS): 2 subjects, 0 labelled",
    ]
    assert {name: (s.subject, s.session) for name, s in found.items()} == {
        "sub-01_ses-1_T1w": ("sub-01", "ses-1"),
        "sub-01_ses-1_task-rest_bold": ("sub-01", "ses-1"),
        "sub-01_ses-2_asl": ("sub-01", "ses-2"),
        "sub-02_T1w": ("sub-02", "sub-02"),
    }
    assert found["sub-01_ses-1_task-rest_bold"].frames == 3
    assert refused(sources) == {
        f"{root}/sub-01/ses-1/fmap/sub-01_ses-1_phasediff.nii.gz": "not_a_scan",
        f"{root}/sub-02/anat/sub-02_T1w_defacemask.nii.gz": "looks_like_labels",
    }
    codes = {}
    settle_codes(sources, codes)
    assert found["sub-01_ses-2_asl"].targets == {"age": 61.5, "sex": 0.0}
    assert found["sub-02_T1w"].targets == {"sex": 1.0}
    assert codes == {"target sex": {"F": 0, "M": 1}}


def test_bids_parts_and_named_derivatives(tmp_path):
    root = trees.bids(tmp_path / "ds")
    part = good(find(root / "sub-01" / "ses-1"))
    assert part.keys() == {"sub-01_ses-1_T1w", "sub-01_ses-1_task-rest_bold"}
    assert part["sub-01_ses-1_T1w"].targets == {"age": 61.5}
    derived = good(find(root / "derivatives"))
    assert [(s.id, s.subject) for s in derived.values()] == [("sub-02_desc-preproc_T1w", "sub-02")]


def test_a_bids_table_without_its_column_is_named(tmp_path):
    root = trees.bids(tmp_path / "ds")
    (root / "participants.tsv").write_text("subject\tage\nsub-01\t3\n")
    with pytest.raises(ValueError, match=r"participants.tsv has no column 'participant_id'"):
        find(root)


def test_totalsegmentator_masks_become_one_label(tmp_path):
    said = []
    root = trees.totalsegmentator(tmp_path / "Totalsegmentator_dataset")
    sources = good(find(root, said=said))
    assert said == ["found 2 volumes in Totalsegmentator_dataset (TotalSegmentator): 2 subjects, 2 labelled"]
    assert [(s.id, s.subject, s.modality) for s in sources.values()] == [
        ("s0001", "s0001", ["ct"]), ("s0002", "s0002", ["mr"]),
    ]  # fmt: skip
    convert(root, tmp_path / "store", spacing="keep", workers=1)
    store = open_store(tmp_path / "store")
    classes = {0: "background", 1: "aorta", 2: "liver", 3: "spleen"}
    for row, case in enumerate(("s0001", "s0002")):
        assert store.label_info(row).classes == classes
        stored = store.read(row, (0, 0, 0), tuple(store.shape(row)[1:]), kind="labels")[0]
        expected = np.zeros(trees.SHAPE, np.uint8)
        for low, name in ((0, "spleen"), (1, "aorta"), (2, "liver")) if row == 0 else ((3, "liver"), (4, "aorta")):
            box = expected[low : low + 4, 2:6, 3:6]
            box[...] = np.maximum(box, {v: k for k, v in classes.items()}[name])  # the later name wins
        counts = [np.bincount(label.ravel(), minlength=4).tolist() for label in (stored, expected)]
        assert counts[0] == counts[1], case


def test_classes_keep_their_numbers_when_a_store_grows(tmp_path):
    root = trees.totalsegmentator(tmp_path / "TS")
    (tmp_path / "one").mkdir()
    (root / "s0002").rename(tmp_path / "one" / "s0002")
    convert(tmp_path / "one", tmp_path / "store", spacing="keep", workers=1)  # aorta 1, liver 2
    trees.mask(root / "s0001" / "segmentations" / "adrenal.nii.gz")
    report = convert([root, tmp_path / "one"], tmp_path / "store", spacing="keep", workers=1)
    assert report.converted == 2
    store = open_store(tmp_path / "store")
    assert store.label_info(1).classes == {0: "background", 1: "aorta", 2: "liver"}
    assert store.label_info(0).classes == {0: "background", 1: "aorta", 2: "liver", 3: "adrenal", 4: "spleen"}


@pytest.mark.parametrize(("images", "labels"), [("imagesTr", "labelsTr"), ("images", "labels")])
def test_flare(tmp_path, images, labels):
    said = []
    root = trees.flare(tmp_path / "FLARE22")
    (root / "imagesTr").rename(root / images)
    (root / "labelsTr").rename(root / labels)
    sources = good(find(root, said=said))
    assert said == ["found 2 volumes in FLARE22 (FLARE): 2 subjects, 1 labelled"]
    assert sources.keys() == {"FLARE22_Tr_0001", "FLARE22_Tr_0002"}
    assert sources["FLARE22_Tr_0001"].label == root / labels / "FLARE22_Tr_0001.nii.gz"


@pytest.mark.parametrize(
    ("contrasts", "mark", "name", "subject", "missing"),
    [
        (trees.BRATS_OLD, "_", "BraTS20_Training_00", "BraTS20_Training_001", "t1ce"),
        (trees.BRATS_NEW, "-", "BraTS-GLI-00007-00", "BraTS-GLI-00007", "t1c"),
    ],
)
def test_brats(tmp_path, contrasts, mark, name, subject, missing):
    said = []
    root = trees.brats(tmp_path / "train", contrasts, mark, name)
    sources = find(root, said=said)
    assert said == ["found 1 volume in train (BraTS): 1 subject, 1 labelled, 1 refused"]
    case = good(sources)[f"{name}1"]
    assert [path.name for path in case.paths] == [f"{name}1{mark}{contrast}.nii.gz" for contrast in contrasts]
    assert (case.subject, case.session, case.modality) == (subject, f"{name}1", ["mr"] * 4)
    assert case.label is not None and case.classes[2] == "oedema"
    bad = next(source for source in sources if source.problem is not None)
    assert bad.problem.reason == "missing_contrast" and missing in bad.problem.detail


def test_folders_called_after_patients_are_hashed_in_these_layouts_too(tmp_path):
    trees.totalsegmentator(tmp_path / "ts")
    for number in (1, 2):
        (tmp_path / "ts" / f"s000{number}").rename(tmp_path / "ts" / f"DOE_{number}")
        for channel, contrast in enumerate(trees.BRATS_OLD):
            trees.image(tmp_path / "br" / f"ROE_{number}" / f"scan_{contrast}.nii.gz", 10 * number + channel)
    (tmp_path / "ts" / "DOE_2" / "mri.nii.gz").rename(tmp_path / "ts" / "DOE_2" / "ct.nii.gz")
    sources = find(tmp_path / "ts", tmp_path / "br")
    assert len(sources) == 4 and len({source.subject for source in sources}) == 4
    assert sorted(source.raw_subject for source in sources) == ["DOE_1", "DOE_2", "ROE_1", "ROE_2"]
    for source in sources:
        for text in (source.id, source.name, source.public, source.subject, source.session, source.folder):
            assert "OE_" not in text


def test_contrasts_without_a_whole_case_are_plain_files(tmp_path):
    for subject in ("a1", "a2"):
        for contrast in ("t1", "flair"):
            trees.image(tmp_path / "in" / subject / f"{subject}_{contrast}.nii.gz", ord(subject[1]) + len(contrast))
    sources = good(find(tmp_path / "in"))
    assert len(sources) == 4 and len({source.subject for source in sources.values()}) == 2


def test_folders_that_may_be_no_patients_are_said(tmp_path):
    said = []
    for number in range(4):
        trees.image(tmp_path / "in" / "old study" / f"p{number}.nii.gz", number + 1)
        assert len({s.subject for s in find(tmp_path / "in", said=said)}) == 1
    words = "subjects of plain files are their outermost folders"
    assert [line.startswith(words) for line in said] == [False] * 4 + [True]
    said.clear()
    rows = "".join(f"old study/p{number}.nii.gz,anna\n" for number in range(4))
    (tmp_path / "in" / "who.csv").write_text(f"path,subject\n{rows}")
    find(tmp_path / "in" / "who.csv", said=said)
    assert len(said) == 1 and "1 subject" in said[0]


def test_a_plain_tree_hides_folders_and_pairs_masks_by_grid(tmp_path):
    said = []
    root = trees.plain_tree(tmp_path / "archive")
    sources = find(root, said=said)
    assert said == [f"found 5 volumes in {root} (plain files): 2 subjects, 1 labelled"]
    jane = [s for s in sources if "DOE_JANE" in s.shown]
    assert len(jane) == 2 and len({s.subject for s in jane}) == 1 and len({s.session for s in jane}) == 2
    label = next(s for s in sources if s.label is not None)
    assert label.shown.endswith("ROE_RICHARD/T1.nii.gz") and label.label.name == "T1_seg.nii.gz"
    for source in sources:
        for text in (source.id, source.name, source.public, source.subject, source.session):
            assert not any(secret in text for secret in ("DOE", "JANE", "ROE", "2019", "2020"))
    report = convert(root, tmp_path / "store", spacing="keep", workers=1)
    assert report.converted == 4
    assert report.refused == [(f"{root}/ROE_RICHARD/T2_mask.nii.gz", "looks_like_labels")]
    assert "DOE" not in (tmp_path / "store" / "refused.csv").read_text()


def test_the_subject_is_the_same_however_a_tree_is_given(tmp_path):
    root = trees.plain_tree(tmp_path / "archive")
    whole = {source.shown: source.subject for source in find(root)}
    parts = {source.shown: source.subject for source in find(*root.iterdir())}
    files = {source.shown: source.subject for source in find(root / "ROE_RICHARD" / "T2.nii.gz")}
    assert whole == parts and files.items() <= whole.items()


def test_masks_are_paired_by_name_only_where_one_image_fits(tmp_path):
    root = tmp_path / "in"
    for name in ("p7_ct", "p8_ct", "p8_mr", "p9", "scan"):
        trees.image(root / "a" / f"{name}.nii.gz", len(name) + ord(name[1]))
    for name in ("p7_seg", "p8_seg", "p9_label", "p9_mask"):  # p8: two images fit; p9: two masks claim it
        trees.mask(root / "a" / f"{name}.nii.gz")
    trees.image(root / "b" / "volume.nii.gz", 91)
    trees.mask(root / "b" / "segmentation.nii.gz")
    sources = {source.id: source for source in find(root)}
    assert {name for name, source in sources.items() if source.labelled} == {"p7_ct", "volume"}
    assert sources.keys() >= {"p8_seg", "p9_label", "p9_mask"}


def test_masks_in_a_folder_beside(tmp_path):
    for case in ("q1", "q2"):
        trees.image(tmp_path / "in" / "scans" / f"{case}.nii.gz", ord(case[1]))
        trees.mask(tmp_path / "in" / "masks" / f"{case}.nii.gz")
    sources = find(tmp_path / "in")
    assert [(s.id, s.label.parent.name) for s in sources] == [("q1", "masks"), ("q2", "masks")]


def test_large_folders_are_no_subjects(tmp_path):
    for number in range(51):
        (tmp_path / "in" / "site_a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / "site_a" / f"x{number:02d}.nii.gz").write_bytes(b"")
    trees.image(tmp_path / "in" / "p1" / "T1.nii.gz")
    sources = find(tmp_path / "in")
    assert len({source.raw_subject for source in sources if source.raw_subject}) == 52


def test_pairs_links_hidden_files_and_stores(tmp_path):
    import nibabel as nib

    root = tmp_path / "in"
    (root / "a").mkdir(parents=True)
    nib.save(nib.Nifti1Pair(smooth((9, 8, 7)), np.eye(4)), root / "a" / "pair.img")
    save(root / "a" / ".hidden.nii.gz", smooth((9, 8, 7), 1))
    (root / "never_fetched.nii.gz").symlink_to(tmp_path / "annex" / "object")
    (root / "loop").symlink_to(root)
    (root / "circle").symlink_to(root / "circle")
    (root / "old.zarr").mkdir()
    (root / "old.zarr" / "zarr.json").write_text("{}")
    trees.image(root / "old.zarr" / "inside.nii.gz")
    (root / "linked").symlink_to(trees.image(tmp_path / "elsewhere" / "far.nii.gz").parent)
    sources = find(root)
    assert good(sources).keys() == {"pair", "far"}
    assert refused(sources) == {f"{root}/never_fetched.nii.gz": "dangling_link"}


def test_strays_in_a_data_set_are_told(tmp_path):
    root = trees.nnunet(tmp_path / "D")
    trees.image(root / "imagesTs_old" / "x.nii.gz", 77)
    trees.image(root / "loose.nii.gz", 78)
    sources = find(root)
    assert good(sources).keys() == {"case_a", "case_b", "x"}
    assert refused(sources) == {f"{root}/loose.nii.gz": "not_in_layout"}


@pytest.mark.parametrize("build", [trees.decathlon, trees.nnunet, trees.flare, trees.totalsegmentator, trees.brats])
def test_a_part_named_alone_is_what_it_is_in_the_whole(tmp_path, build):
    root = build(tmp_path / "set")
    whole = good(find(root))
    for part in sorted({path.parent for source in whole.values() for path in source.paths}):
        for name, source in good(find(part)).items():
            assert (source.subject, source.label, source.paths) == (
                whole[name].subject, whole[name].label, whole[name].paths,
            )  # fmt: skip
    files = [path for source in whole.values() for path in source.paths]
    assert good(find(*files)).keys() == whole.keys()


def test_several_layouts_in_one_tree(tmp_path):
    for build in (trees.decathlon, trees.bids, trees.flare, trees.plain_tree):
        build(tmp_path / "all" / build.__name__)
    said = []
    find(tmp_path / "all", said=said)
    assert [line.split("(")[1].split(")")[0] for line in said if line.startswith("found")] == [
        "plain files", "BIDS", "MSD", "FLARE",
    ]  # fmt: skip


def test_acdc_frames_have_references_and_the_cine_comes_along(tmp_path):
    root = trees.acdc(tmp_path / "database" / "training")
    said = []
    sources = good(find(tmp_path / "database", said=said))
    assert said == ["found 4 volumes in training (ACDC): 1 subject, 1 labelled"]
    frame, cine = sources["patient001_frame01"], sources["patient001_4d"]
    assert frame.label == root / "patient001" / "patient001_frame01_gt.nii.gz" and frame.modality == ["mr"]
    assert (frame.subject, cine.subject, cine.frames) == ("patient001", "patient001", 3) and not cine.labelled
    assert frame.classes[3] == "left ventricle" and frame.targets == {"height": 184.0, "weight": 95.5}
    assert frame.target_classes == {"group": "DCM"}
    assert good(find(root / "patient001")).keys() == sources.keys()
    convert(root, tmp_path / "store", spacing="keep", workers=1)
    store = open_store(tmp_path / "store")
    assert set(store.column("id")) == {"patient001_frame01", "patient001_4d_t0001", "patient001_4d_t0002"}
    (root / "patient001" / "Info.cfg").write_text("Height: tall\n")
    with pytest.raises(ValueError, match=r"Info.cfg says Height: tall, which is no number"):
        find(root)


@pytest.mark.parametrize(("images", "labels"), [("img", "label"), ("imagesTr", "labelsTr")])
def test_btcv(tmp_path, images, labels):
    root = tmp_path / "RawData" / "Training"
    trees.image(root / images / "img0001.nii.gz", 1)
    trees.image(root / images / "img0035.nii.gz", 2)
    trees.mask(root / labels / "label0035.nii.gz")
    (root / "dataset.json").write_text('{"labels": {"0": "background", "1": "x"}, "modality": {"0": "CT"}}')
    sources = good(find(root))
    assert {name: source.label and source.label.name for name, source in sources.items()} == {
        "img0001": None, "img0035": "label0035.nii.gz",
    }  # fmt: skip
    assert sources["img0035"].classes[13] == "left adrenal gland" and sources["img0035"].subject == "img0035"
    assert good(find(root / images / "img0035.nii.gz")).keys() == {"img0035"}


def test_amos_numbers_tell_ct_from_mr(tmp_path):
    for number, case in enumerate(("amos_0004", "amos_0507")):
        trees.image(tmp_path / "amos22" / "imagesTr" / f"{case}.nii.gz", number)
        trees.mask(tmp_path / "amos22" / "labelsTr" / f"{case}.nii.gz")
    (tmp_path / "amos22" / "dataset.json").write_text('{"labels": {"0": "background"}, "modality": {"0": "CT"}}')
    sources = good(find(tmp_path / "amos22"))
    assert {name: source.modality for name, source in sources.items()} == {"amos_0004": ["ct"], "amos_0507": ["mr"]}
    assert good(find(tmp_path / "amos22" / "imagesTr")).keys() == sources.keys()
