"""Archives: what is in them is converted as if unpacked; what is unsafe, damaged or too large leaves nothing behind."""

import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import trees_prep as trees
from test_prep_sources_layouts import find

from preprocessing import archives, convert
from preprocessing.archives import Scratch
from preprocessing.refusal import Refusal
from ssl3d.data.store import open_store

_CHECKOUT = Path(__file__).parents[2]
_UNPACK_AND_WAIT = """
import sys, time
from pathlib import Path
from preprocessing.archives import Scratch
with Scratch(sys.argv[2]) as scratch:
    scratch.unpack(Path(sys.argv[1]))
    print("up", flush=True)
    time.sleep(99)
"""


def pack(folder: Path, archive: Path) -> Path:
    """An archive of a folder, the folder's name included."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
            for path in sorted(folder.rglob("*")):
                out.write(path, Path(folder.name) / path.relative_to(folder))
    else:
        mode = {".tar": "w", ".xz": "w:xz"}.get(archive.suffix, "w:gz")
        with tarfile.open(archive, mode) as out:
            out.add(folder, folder.name)
    return archive


def tar_of(archive: Path, *members: tarfile.TarInfo, content: bytes = b"") -> Path:
    with tarfile.open(archive, "w") as out:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            out.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return archive


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def reason(archive: Path, tmp_path: Path) -> str:
    """Why an archive is refused; nothing of it stays."""
    with Scratch(tmp_path / "s.zarr") as scratch:
        with pytest.raises(Refusal) as caught:
            scratch.unpack(archive)
        assert not [path for path in scratch.path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert not (tmp_path / "s.zarr.unpacked").exists()
    assert str(tmp_path) not in caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz"])
def test_an_archive_is_what_its_folder_is(tmp_path, suffix):
    folder = trees.nnunet(tmp_path / "Dataset001_X")
    convert(folder, tmp_path / "plain", spacing="keep", workers=1)
    archive = pack(folder, tmp_path / f"export{suffix}")
    shutil.rmtree(folder)
    report = convert(archive, tmp_path / "store", spacing="keep", workers=1)
    assert (report.converted, report.refused) == (2, [])
    assert not (tmp_path / "store.unpacked").exists()
    for name in ("volumes/case_a", "labels/case_b"):
        for file in (tmp_path / "plain" / name).rglob("*"):
            if file.is_file():
                assert file.read_bytes() == (tmp_path / "store" / file.relative_to(tmp_path / "plain")).read_bytes()


def test_archives_in_folders_and_in_archives(tmp_path):
    inner = pack(trees.plain_tree(tmp_path / "inner"), tmp_path / "inner.tgz")
    (tmp_path / "in" / "deep").mkdir(parents=True)
    inner.rename(tmp_path / "in" / "deep" / "inner.tgz")
    trees.image(tmp_path / "in" / "beside.nii.gz", 55)
    shutil.rmtree(tmp_path / "inner")
    outer = pack(tmp_path / "in", tmp_path / "outer.zip")
    for source in (tmp_path / "in", outer):
        sources = find(source)
        assert len(sources) == 6 and all(s.problem is None for s in sources)
        assert {s.raw_subject for s in sources} == {"DOE_JANE", "ROE_RICHARD", "beside"}
        assert all(s.shown.startswith(str(source)) and "unpacked" not in s.name for s in sources)
    assert any(f"{outer}/in/deep/inner.tgz/inner/DOE_JANE" in s.shown for s in sources)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    outer.rename(tmp_path / "a" / "outer.zip")
    third = pack(tmp_path / "a", tmp_path / "b" / "third.zip")
    assert "archive_bomb" in {s.problem.reason for s in find(third) if s.problem is not None}


def test_links_inside_are_followed(tmp_path):
    content = trees.image(tmp_path / "x.nii.gz").read_bytes()
    members = tarfile.TarInfo("annex/ab/object.nii.gz"), link("sub/scan.nii.gz", "../annex/ab/object.nii.gz")
    archive = tar_of(tmp_path / "a.tar", *members, link("hard.nii.gz", "annex/ab/object.nii.gz", tarfile.LNKTYPE),
                     link("sub/nowhere.nii.gz", "../gone"), content=content)  # fmt: skip
    with Scratch(tmp_path / "s.zarr") as scratch:
        place = scratch.unpack(archive)
        assert (place / "sub" / "scan.nii.gz").read_bytes() == (place / "hard.nii.gz").read_bytes() == content
        assert not any(path.is_symlink() for path in place.rglob("*"))
        assert not (place / "sub" / "nowhere.nii.gz").exists()


@pytest.mark.parametrize("name", ["../evil.nii", "/tmp/evil.nii", "a/../../evil.nii", "C:\\evil.nii", "..\\evil.nii"])
def test_names_that_lead_out(tmp_path, name):
    assert reason(tar_of(tmp_path / "a.tar", tarfile.TarInfo(name)), tmp_path) == "archive_unsafe"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.writestr("fine.nii", b"1")
        out.writestr(zipfile.ZipInfo(name), b"2")
    assert reason(tmp_path / "a.zip", tmp_path) == "archive_unsafe"
    assert not list(tmp_path.rglob("evil*"))


def test_links_that_lead_out_and_devices(tmp_path):
    for target in ("/etc/passwd", "../../outside", "sub/../../../x"):
        assert reason(tar_of(tmp_path / "a.tar", link("in/a.nii", target)), tmp_path) == "archive_link"
        assert reason(tar_of(tmp_path / "a.tar", link("a.nii", target, tarfile.LNKTYPE)), tmp_path) == "archive_link"
        info = zipfile.ZipInfo("in/a.nii")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
            out.writestr(info, target)
        assert reason(tmp_path / "a.zip", tmp_path) == "archive_link"
    assert reason(tar_of(tmp_path / "a.tar", link("fifo", "", tarfile.FIFOTYPE)), tmp_path) == "archive_unsafe"
    # a file written through a link that stood there before
    trick = link("sub", "elsewhere"), tarfile.TarInfo("sub/x.nii")
    with Scratch(tmp_path / "s.zarr") as scratch:
        place = scratch.unpack(tar_of(tmp_path / "a.tar", *trick, content=b"1"))
        assert (place / "sub" / "x.nii").is_file() and not (place / "elsewhere").exists()


def test_bombs_and_full_disks(tmp_path, monkeypatch):
    zeros = b"\0" * (1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as out, out.open("zeros.nii", "w") as file:
        for _ in range(101):
            file.write(zeros)
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as out:
        member = tarfile.TarInfo("zeros.nii")
        member.size = 101 << 20
        out.addfile(member, io.BytesIO(bytes(member.size)))
    for name in ("bomb.zip", "bomb.tar.gz"):
        assert reason(tmp_path / name, tmp_path) == "archive_bomb"
        assert {source.problem.reason for source in find(tmp_path / name)} == {"archive_bomb"}  # a dry run says so too
    fine = pack(trees.flare(tmp_path / "F"), tmp_path / "fine.zip")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage._replace(free=archives.DISK_RESERVE + 100))
    for name in (fine, pack(tmp_path / "F", tmp_path / "fine.tar.gz")):
        assert reason(name, tmp_path) == "archive_too_large"


def test_damaged_encrypted_and_empty_archives(tmp_path):
    folder = trees.flare(tmp_path / "F")
    for suffix in (".zip", ".tar", ".tar.gz", ".tar.xz"):
        whole = pack(folder, tmp_path / f"a{suffix}").read_bytes()
        for cut in (whole[: len(whole) * 2 // 3], b"<html>404</html>", whole[:512]):
            (tmp_path / f"a{suffix}").write_bytes(cut)
            assert reason(tmp_path / f"a{suffix}", tmp_path) == "archive_damaged", (suffix, len(cut))
        (tmp_path / f"a{suffix}").write_bytes(b"")
        assert reason(tmp_path / f"a{suffix}", tmp_path) == "empty_file"
        if suffix != ".tar":  # a plain tar has no checksum of its files
            middle = len(whole) // 2
            (tmp_path / f"a{suffix}").write_bytes(whole[:middle] + bytes([whole[middle] ^ 0x55]) + whole[middle + 1 :])
            assert reason(tmp_path / f"a{suffix}", tmp_path) == "archive_damaged"
    with tarfile.open(pack(folder, tmp_path / "b.tar")) as opened:  # cut between two files: only the end mark is gone
        border = opened.getmembers()[-1].offset
    with (tmp_path / "b.tar").open("r+b") as file:
        file.truncate(border)
    assert reason(tmp_path / "b.tar", tmp_path) == "archive_damaged"
    whole = pack(folder, tmp_path / "d.tar").read_bytes()
    (tmp_path / "d.tar").write_bytes(whole[: border + 20] + b"?" + whole[border + 21 :])  # in a header, not the first
    assert reason(tmp_path / "d.tar", tmp_path) == "archive_damaged"
    secret = pack(folder, tmp_path / "c.zip").read_bytes()
    at = secret.index(b"PK\x01\x02") + 8  # flags of the first entry in the central directory
    (tmp_path / "c.zip").write_bytes(secret[:at] + bytes([secret[at] | 1]) + secret[at + 1 :])
    assert reason(tmp_path / "c.zip", tmp_path) == "archive_encrypted"


def test_a_refused_archive_is_named_as_typed_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trees.image(tmp_path / "in" / "fine.nii.gz")
    (tmp_path / "in" / "broken.zip").write_bytes(b"PK no")
    report = convert("in", "store", spacing="keep", workers=1)
    assert (report.converted, report.refused, report.exit_code) == (1, [("in/broken.zip", "archive_damaged")], 0)
    report = convert("in/broken.zip", "other", spacing="keep", workers=1)
    assert (report.refused, report.exit_code) == ([("in/broken.zip", "archive_damaged")], 1)


def test_names_of_refused_archives_and_folders_stay_out_of_the_store(tmp_path, capsys):
    """Whoever exports scans calls archives and folders after patients."""
    trees.image(tmp_path / "in" / "fine.nii.gz")
    (tmp_path / "in" / "DOE_JANE.zip").write_bytes(b"PK no")
    (tmp_path / "in" / "DOE_JIM.tar.gz").write_bytes(b"")
    (tmp_path / "in" / "DOE" / "t1.nii").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "in" / "DOE_JACK.zip", "w") as out:
        out.writestr("DOE_JACK/head.nii", bytes(400))
    report = convert(tmp_path / "in", tmp_path / "store", spacing="keep", workers=1)
    reasons = sorted(reason for _, reason in report.refused)
    assert reasons == ["archive_damaged", "blank_file", "empty_file", "not_a_file"]
    text = (tmp_path / "store" / "refused.csv").read_text()
    assert not [name for name in ("DOE", "JACK", "JANE", "JIM") if name in text]
    said = capsys.readouterr().out
    for line in text.splitlines()[1:]:
        assert line.startswith("in/") or f"[{line.split(',')[0]}]" in said, "the screen says which is which"


def test_a_dry_run_of_an_archive_writes_nothing_here(tmp_path, capsys, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    archive = pack(trees.bids(tmp_path / "ds"), tmp_path / "ds.tar.gz")
    before = sorted(tmp_path.rglob("*"))
    report = convert(archive, tmp_path / "store", dry_run=True, subject_key=tmp_path / "key")
    assert (report.converted, len(report.refused)) == (6, 2)
    assert sorted(tmp_path.rglob("*")) == before
    assert "(unlabelled, subject sub-01, 3 frames, targets age, sex)" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="sends SIGKILL")
def test_what_a_killed_run_unpacked_is_removed_by_the_next(tmp_path):
    archive = pack(trees.flare(tmp_path / "F"), tmp_path / "a.zip")
    environment = {**os.environ, "PYTHONPATH": str(_CHECKOUT)}
    command = [sys.executable, "-c", _UNPACK_AND_WAIT, str(archive), str(tmp_path / "store")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        with pytest.raises(ValueError, match="another ssl3d convert"):
            convert(archive, tmp_path / "store", spacing="keep", workers=1)
        process.send_signal(signal.SIGKILL)
    left = tmp_path / "store.unpacked"
    assert any(left.rglob("*.nii.gz"))
    deadline = time.monotonic() + 10
    while True:  # the lock falls when the system has cleared the process away
        try:
            report = convert(tmp_path / "F", tmp_path / "store", spacing="keep", workers=1)
            break
        except ValueError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert report.converted == 2 and not left.exists()
    assert set(open_store(tmp_path / "store").index["id"]) == {"FLARE22_Tr_0001", "FLARE22_Tr_0002"}


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz"])
def test_flipped_bytes_end_in_a_refusal_or_nowhere(tmp_path, suffix):
    whole = pack(trees.flare(tmp_path / "F"), tmp_path / f"a{suffix}").read_bytes()
    generator = random.Random(7)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(generator.choice((1, 3, 30))):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        (tmp_path / f"a{suffix}").write_bytes(damaged)
        with Scratch(tmp_path / "s.zarr") as scratch, contextlib.suppress(Refusal):
            scratch.unpack(tmp_path / f"a{suffix}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["F", f"a{suffix}"]
