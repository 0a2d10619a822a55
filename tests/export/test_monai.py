"""MONAI's own networks and bundle reader take an export."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets.segresnet import SegResNet as MonaiSegResNet
from monai.networks.nets.swin_unetr import SwinUNETR as MonaiSwinUNETR

from ssl3d.export.monai import export_monai
from ssl3d.export.source import Source
from ssl3d.models.resenc import ResEncUNet
from ssl3d.models.segresnet import SegResNet
from ssl3d.models.swin import SwinUNETR
from ssl3d.testing.backbone import randomise

CT = {
    "spacing": [2.0, 1.0, 1.5],
    "normalisation": {"modalities": {"ct": [{"low": -1000.0, "high": 1000.0, "mean": 50.0, "std": 200.0}]}},
}


def small_segresnet(channels=1):
    return randomise(SegResNet(init_filters=8, in_channels=channels, blocks_down=(1, 1, 2), blocks_up=(1, 1))).eval()


def bundle(folder):
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    parser["bundle_root"] = str(folder)
    parser["device"] = torch.device("cpu")
    return parser


def weights(folder):
    return torch.load(folder / "models" / "model.pt", weights_only=True)


def test_monais_swin_unetr_loads_strictly_and_gives_the_same_features(tmp_path):
    backbone = randomise(SwinUNETR("tiny", in_channels=2)).eval()
    report = export_monai(backbone, tmp_path, strict=True)
    network = MonaiSwinUNETR(in_channels=2, out_channels=2, feature_size=12, window_size=4, use_v2=True).eval()
    network.load_state_dict(weights(tmp_path), strict=True)
    x = torch.randn(1, 2, 32, 64, 32)
    features = backbone.encode(x)
    torch.testing.assert_close(network.out(backbone.decode(features)[0]), network(x))
    assert {t.name for t in report.tensors if t.part == "head"} == {"out.conv.conv.weight", "out.conv.conv.bias"}


def test_monais_segresnet_loads_strictly_and_gives_the_same_features(tmp_path):
    backbone = small_segresnet(2)
    export_monai(backbone, tmp_path)
    network = MonaiSegResNet(
        init_filters=8, in_channels=2, out_channels=2, blocks_down=(1, 1, 2), blocks_up=(1, 1)
    ).eval()
    network.load_state_dict(weights(tmp_path), strict=True)
    x = torch.randn(1, 2, 8, 16, 24)
    torch.testing.assert_close(network.conv_final[2](backbone.decode(backbone.encode(x))[0]), network(x))


def test_channels_and_classes_of_a_data_set(tmp_path):
    dataset = tmp_path / "dataset.json"
    dataset.write_text(
        json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1, "b": 2}})
    )
    backbone = small_segresnet()
    report = export_monai(backbone, tmp_path / "out", dataset_json=dataset)
    assert report.names("adapted") == ["convInit.conv.weight"]
    network = bundle(tmp_path / "out").get_parsed_content("network")
    network.load_state_dict(weights(tmp_path / "out"), strict=True)
    x = torch.randn(1, 1, 8, 16, 24)
    two = network.eval().encode(x.expand(-1, 2, -1, -1, -1))[0]
    torch.testing.assert_close(two, backbone.encode(x)[-1], rtol=1e-3, atol=1e-4)
    assert network(x.expand(-1, 2, -1, -1, -1)).shape[1] == 3
    with pytest.raises(ValueError, match="has 2 image channels, --in-channels says 3"):
        export_monai(backbone, tmp_path / "out", dataset_json=dataset, in_channels=3)
    with pytest.raises(ValueError, match=r"--strict: 'convInit.conv.weight' would be adapted"):
        export_monai(backbone, tmp_path / "out", in_channels=2, strict=True)


def test_the_bundle_reads_a_scan_as_the_pretraining_did(tmp_path):
    export_monai(Source(small_segresnet(), patch_size=(8, 16, 16), provenance=CT), tmp_path)
    scans = tmp_path / "scans"
    scans.mkdir()
    voxels = np.random.default_rng(0).normal(0, 600, (12, 20, 10)).astype(np.float32)  # x to the left, y to the back
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.5, -1.0, 2.0, 1.0])), scans / "one.nii.gz")
    parser = bundle(tmp_path)
    image = parser.get_parsed_content("dataset")[0]["image"]
    wanted = (np.clip(voxels, -1000, 1000) - 50) / 200
    np.testing.assert_allclose(np.asarray(image)[0], wanted.transpose(2, 1, 0), rtol=1e-4, atol=1e-4)
    network = parser.get_parsed_content("network").eval()
    parser.get_parsed_content("initialize")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in weights(tmp_path).items())
    torch.save({name: value + 1 for name, value in weights(tmp_path).items()}, tmp_path / "models" / "finetuned.pt")
    tuned = bundle(tmp_path)
    tuned["checkpoint"] = str(tmp_path / "models" / "finetuned.pt")
    tuned.get_parsed_content("initialize")
    again = tuned.get_parsed_content("network").state_dict()
    assert all(torch.equal(value + 1, again[name]) for name, value in weights(tmp_path).items())
    with torch.no_grad():
        predicted = parser.get_parsed_content("inferer")(image[None], network)
    assert predicted.shape == (1, 2, 10, 20, 12) and torch.isfinite(predicted).all()


def test_metadata_and_readme_say_what_it_is(tmp_path):
    export_monai(Source(small_segresnet(), trained_decoder=False, provenance=CT), tmp_path)
    metadata = json.loads((tmp_path / "configs" / "metadata.json").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    assert image["modality"] == "CT" and image["num_channels"] == 1
    text = (tmp_path / "docs" / "README.md").read_text()
    assert "conv_final.2.conv.weight" in text and "fresh" in text
    report = json.loads((tmp_path / "report.json").read_text())
    assert all(t["part"] != "encoder" for t in report["tensors"] if t["outcome"] == "fresh")


def test_what_monai_has_not_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no segmentation network like ResEncUNet: only SwinUNETR and SegResNet"):
        export_monai(ResEncUNet("S"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
