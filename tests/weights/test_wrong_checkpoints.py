"""The ways in which a checkpoint for nnU-Net can be wrong, given to us: each is put right and told, or refused by name.

They are those that nnU-Net's `-pretrained_weights` refuses, or takes without a word although it should not.
"""

import pytest
import torch

from ssl3d.models.resenc import ResEncUNet
from ssl3d.weights import Choices, fill_from, import_weights

ARCH = {
    "n_stages": 3, "features_per_stage": [4, 6, 8], "n_blocks_per_stage": [1, 2, 1],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_conv_per_stage_decoder": [1, 1],
}  # fmt: skip
CONV = "encoder.stages.1.blocks.0.conv1.conv.weight"


def recipe_model(**changes) -> ResEncUNet:
    """The network that a recipe has built, for two channels."""
    return ResEncUNet("S", 2, ARCH | changes)


def refused(error) -> str:
    text = str(error.value)
    assert "\n" not in text and ".pth'" in text
    return text


# Taken by nnU-Net without a word.


def test_a_stale_second_encoder_is_refused(save, resenc):
    state = {k: v.clone() for k, v in resenc().state_dict().items()}
    state[f"decoder.{CONV}"] += 1
    with pytest.raises(ValueError, match=r"holds two encoders: .* differ here, so one of them is stale") as error:
        import_weights(save({"network_weights": state}))
    assert CONV in refused(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused(save, resenc, value):
    network = resenc()
    with torch.no_grad():
        network.state_dict()[CONV][0, 0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="holds NaN or Inf") as error:
        import_weights(save({"network_weights": network.state_dict()}))
    assert CONV in refused(error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_refused_unless_it_is_asked_for(save, resenc, dtype):
    path = save({"network_weights": resenc().to(dtype).state_dict()})
    word = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"is {word}, not float32: .*--cast") as error:
        import_weights(path)
    refused(error)
    _, report = import_weights(path, Choices(cast=True))
    assert {t.reason for t in report.tensors if t.part != "head"} == {f"{word} converted to float32"}


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_a_type_that_is_no_weight_is_refused(save, resenc, dtype):
    state = {k: v.to(dtype) for k, v in resenc().state_dict().items()}
    with pytest.raises(ValueError, match=f"is {str(dtype).removeprefix('torch.')}, this model needs float32") as error:
        import_weights(save({"network_weights": state}), Choices(cast=True))
    refused(error)


def test_a_name_of_a_tensor_that_was_not_shared_is_refused(save, resenc):
    """nnssl's SparK conversion leaves `.conv` trained and `.all_modules.0` as it was."""
    state = {k: v.clone() for k, v in resenc().state_dict().items() if not k.startswith("decoder.encoder.")}
    state[CONV.replace("conv.weight", "all_modules.0.weight")] += 1
    with pytest.raises(ValueError, match="are one tensor in this model but differ in the file") as error:
        import_weights(save({"network_weights": state}))
    assert CONV in refused(error)


# Refused by nnU-Net; here they are recognised, and the report says what was done.


def test_an_encoder_alone_leaves_the_decoder_fresh(save, resenc):
    state = {k: v for k, v in resenc().state_dict().items() if k.startswith("encoder.")}
    _, report = import_weights(save({"network_weights": state}))
    assert report.share("encoder") == 1 and report.share("decoder") == 0
    assert "the file holds no decoder" in report.text() and "assumed to halve" in report.text()


@pytest.mark.parametrize("kept", [".conv.", ".all_modules."])
def test_one_name_a_tensor_is_enough(save, resenc, kept):
    network = resenc()
    other = ".all_modules." if kept == ".conv." else ".conv."
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("decoder.encoder.")}
    drop = (other, ".norm.") if kept == ".all_modules." else (other,)
    backbone, report = import_weights(save({"network_weights": {k: v for k, v in state.items()
                                                                if not any(d in k for d in drop)}}))  # fmt: skip
    assert report.share() == 1
    assert all(torch.equal(v, state[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_prefix_of_parallel_or_compiled_training_is_taken_off(save, resenc, prefix):
    state = {prefix + k: v for k, v in resenc().state_dict().items()}
    _, report = import_weights(save({"network_weights": state}))
    assert report.share() == 1 and f"read from 'network_weights/{prefix}' of the file" in report.notes


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"epoch": 1, "model": {"ema": s}}]
)
def test_a_bare_or_otherwise_wrapped_state_dict_is_found(save, resenc, wrap):
    _, report = import_weights(save(wrap(resenc().state_dict())))
    assert report.share() == 1


def test_tensors_tagged_for_a_device_that_is_not_here_are_read(tmp_path, resenc):
    """A storage tagged cuda:0, as torch.save writes it, on a machine without CUDA."""
    import zipfile

    source, tagged = tmp_path / "cpu.pth", tmp_path / "cuda.pth"
    torch.save({"network_weights": resenc().state_dict()}, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tagged, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith("data.pkl"):
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
                assert b"cuda:0" in data
            new.writestr(item, data)
    backbone, report = import_weights(tagged)
    assert report.share() == 1 and next(backbone.parameters()).device.type == "cpu"


@pytest.mark.parametrize(("theirs", "mine"), [(1, 2), (3, 1), (2, 2)])
def test_another_number_of_channels_is_adapted_in_the_stem(save, resenc, theirs, mine):
    network = resenc(input_channels=theirs)
    backbone, report = import_weights(save({"network_weights": network.state_dict()}), in_channels=mine)
    adapted = report.names("adapted")
    assert adapted == (["encoder.stem.convs.0.conv.weight"] if theirs != mine else [])
    grey = torch.randn(1, 1, 4, 8, 12)
    with torch.no_grad():
        for a, b in zip(
            backbone.encode(grey.repeat(1, mine, 1, 1, 1)), network.encoder(grey.repeat(1, theirs, 1, 1, 1))
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# Refused by nnU-Net and by us, when the recipe's network is another one: the first difference, in words.


@pytest.mark.parametrize(
    ("theirs", "tensor"),
    [
        ({"n_stages": 2, "features_per_stage": [4, 6], "n_blocks_per_stage": [1, 2], "n_conv_per_stage_decoder": [1],
          "kernel_sizes": ARCH["kernel_sizes"][:2], "strides": ARCH["strides"][:2]},
         r"decoder.*its n_stages is 2, the model's 3"),
        ({"kernel_sizes": [[3, 3, 3]] * 3}, r"encoder\.stem\.convs\.0\.conv\.weight.*its kernel_sizes is"),
        ({"features_per_stage": [4, 6, 10]}, r"encoder\.stages\.2.*its features_per_stage is"),
        ({"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}, r"decoder\.transpconvs.*its strides is"),
    ],
)  # fmt: skip
def test_another_architecture_names_its_first_difference(save, resenc, theirs, tensor):
    path = save({"network_weights": resenc(**theirs).state_dict()})
    model = recipe_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=tensor) as error:
        fill_from(model, path, choices=Choices(minimum=1.0))
    refused(error)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "nothing is changed"


def test_another_network_is_named_with_the_recipe_that_takes_it(save, resenc):
    from ssl3d.models.plain_unet import PlainConvUNet

    path = save({"network_weights": resenc().state_dict()})
    with pytest.raises(ValueError, match=r"weights of a ResEncUNet .* the model is a PlainConvUNet") as error:
        fill_from(PlainConvUNet("S"), path)
    assert "model._target_=ssl3d.models.resenc.ResEncUNet" in refused(error)


def test_plans_that_contradict_the_tensors_are_refused(save, resenc):
    plan = {"architecture_plans": {"arch_kwargs": {"strides": [1, 2, 2], "features_per_stage": [4, 6, 9]}}}
    with pytest.raises(ValueError, match="contradicts itself: its plans say features_per_stage") as error:
        import_weights(save({"network_weights": resenc().state_dict(), "nnssl_adaptation_plan": plan}))
    refused(error)


def test_two_dimensional_weights_of_nnunet_are_refused(save, resenc):
    from torch import nn

    network = resenc(conv_op=nn.Conv2d, norm_op=nn.InstanceNorm2d, kernel_sizes=[3, 3, 3], strides=[1, 2, 2])
    with pytest.raises(ValueError, match=r"2D nnU-Net.*3d_fullres") as error:
        import_weights(save({"network_weights": network.state_dict()}))
    refused(error)


def test_strict_refuses_what_is_not_bit_equal(save, resenc):
    network = resenc(input_channels=1)
    _, report = import_weights(save({"network_weights": network.state_dict()}))
    report.refuse_inexact("the file")
    _, report = import_weights(save({"network_weights": network.state_dict()}), in_channels=2)
    with pytest.raises(ValueError, match=r"--strict: 'encoder\.stem\.convs\.0\.conv\.weight' would be adapted"):
        report.refuse_inexact("the file")
