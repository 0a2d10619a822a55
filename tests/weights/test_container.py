"""What is no weights file is refused by one sentence that names it, and nothing in a file is run."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssl3d.weights import import_weights
from ssl3d.weights.container import open_container


def one_sentence(error) -> str:
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-lfs pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan</title>", "is a web page"),
        (b'{"error": "Repository not found"}', "is JSON text"),
        (b"\x1f\x8b\x08\x00" + bytes(20), "is a packed archive"),
        (b"just a text", "neither a PyTorch nor a safetensors file"),
        (b"PK\x03\x04" + bytes(100), "is truncated"),
        (b"\x80\x02}q\x00(X\x01\x00", "is damaged or"),
    ],
)
def test_what_a_failed_download_leaves_is_named(tmp_path, content, says):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as error:
        import_weights(path)
    assert f"'{path}'" in one_sentence(error)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["torch", "legacy", "safetensors"])
def test_a_truncated_file_is_named(tmp_path, resenc, kind, share):
    path = tmp_path / "cut.bin"
    state = {k: v.clone() for k, v in resenc().state_dict().items()}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"truncated|damaged") as error:
        import_weights(path)
    assert f"'{path}'" in one_sentence(error)


def test_a_missing_file_and_a_folder_without_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no run or weights file .*nowhere"):
        import_weights(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        import_weights(tmp_path)


def test_a_zip_of_something_else_is_named(tmp_path):
    import zipfile

    path = tmp_path / "bundle.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.md", "weights are elsewhere")
    with pytest.raises(ValueError, match=r"a zip archive that torch\.save did not write"):
        import_weights(path)


def test_a_torchscript_program_is_named(tmp_path):
    path = tmp_path / "model.ts"
    torch.jit.script(torch.nn.Linear(2, 3)).save(str(path))
    with pytest.raises(ValueError, match="is a TorchScript program, not weights"):
        import_weights(path)


def test_a_sidecar_does_not_choose_what_is_imported(tmp_path):
    save_file({"a.weight": torch.ones(2), "a.bias": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text('{"backbone": {"target": "antigravity.Backbone", "kwargs": {}}}')
    with pytest.raises(ValueError, match=r"fills 'antigravity\.Backbone', which is none of ssl3d\.models"):
        import_weights(tmp_path / "model.safetensors")


class Malicious:
    """Unpickled, it would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (exec, (f"open({str(self.target)!r}, 'w').close()",))


@pytest.mark.parametrize("new", [True, False])
def test_a_malicious_checkpoint_runs_nothing_and_says_what_it_wanted(tmp_path, resenc, new):
    target, path = tmp_path / "executed", tmp_path / "evil.pth"
    torch.save(
        {"network_weights": resenc().state_dict(), "trainer": Malicious(target)},
        path,
        _use_new_zipfile_serialization=new,
    )
    with pytest.raises(ValueError, match=r"holds more than tensors: it asks to run .*exec.*--trust") as error:
        import_weights(path)
    assert f"'{path}'" in one_sentence(error)
    assert not target.exists()


def test_a_malicious_plain_pickle_runs_nothing(tmp_path):
    target, path = tmp_path / "executed", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"state_dict": Malicious(target)}))
    with pytest.raises(ValueError, match=r"evil\.pkl"):
        import_weights(path)
    assert not target.exists()


def test_a_malicious_safetensors_name_is_only_a_name(tmp_path):
    path = tmp_path / "odd.safetensors"
    save_file({"__reduce__": torch.ones(2), "os.system": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"2 tensors .* of no network known here"):
        import_weights(path)


def test_a_safetensors_header_longer_than_the_file_is_named(tmp_path):
    path = tmp_path / "long.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 30) + b'{"a":')
    with pytest.raises(ValueError, match="damaged or truncated safetensors"):
        import_weights(path)


def test_trust_reads_objects_of_other_programs(save, resenc):
    from argparse import Namespace

    path = save({"network_weights": resenc().state_dict(), "args": Namespace(lr=1)})
    with pytest.raises(ValueError, match=r"argparse\.Namespace"):
        open_container(path)
    assert open_container(path, trust=True).content["args"].lr == 1


def test_numpy_numbers_beside_the_weights_are_harmless(save, resenc):
    """nnU-Net logs float64 scalars into its checkpoints."""
    logging = {"ema": [np.float64(0.5), np.float32(1)], "epochs": np.arange(3), "best": np.int64(3)}
    _, report = import_weights(save({"network_weights": resenc().state_dict(), "logging": logging}))
    assert report.share() == 1


@pytest.mark.parametrize("content", [{}, {"epoch": 3, "args": {"lr": 1.0}}, [1, 2], torch.ones(3)])
def test_a_file_without_weights_says_what_it_holds(save, content):
    with pytest.raises(ValueError, match="holds no weights") as error:
        import_weights(save(content))
    one_sentence(error)


def test_an_unknown_network_names_its_first_tensors_and_what_is_known(save):
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"holds 4 tensors \('0\.weight', '0\.bias', \.\.\.\).*Swin UNETR"):
        import_weights(save(network.state_dict()))
