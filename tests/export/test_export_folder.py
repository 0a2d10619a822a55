"""The folder of an export: whole after any kill and the same command again, and never a file of somebody else's."""

import json
import shutil

import pytest
from kills import deaths

from ssl3d import checkpoint
from ssl3d.export import export
from ssl3d.export.folder import PAGE, REPORT, ExportFolder, written


@pytest.fixture(autouse=True)
def _not_flushed(monkeypatch):
    """What was written outlives a killed process; flushing to the disk is for the machine's own end, and slow."""
    monkeypatch.setattr("ssl3d.files.os.fsync", lambda handle: None)


def write(out, to="hub", **files):
    """An export of text files, `a` and `b` unless said; b below another folder."""
    files = files or {"a": "new", "b": "new"}
    with ExportFolder(out, to) as folder:
        for name, text in files.items():
            folder.write_text("docs/b" if name == "b" else name, text)
        folder.write_json(REPORT, {"to": to, "files": [*folder.names, REPORT, PAGE]})
        folder.write_text(PAGE, "<html>")


def content(out):
    """{name: bytes} of all files of a folder, and its empty folders."""
    files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    return files | {str(p.relative_to(out)): None for p in out.rglob("*") if p.is_dir() and not any(p.iterdir())}


def old_export(out):
    write(out, a="old", b="old", c="old, and not written again")


def of_somebody(out):
    out.mkdir(exist_ok=True)
    (out / "mine.txt").write_text("mine")
    (out / "docs").mkdir(exist_ok=True)
    (out / "docs" / "mine.txt").write_text("mine too")


def test_an_export_is_replaced_as_a_whole_and_other_files_stay(tmp_path):
    write(tmp_path / "fresh")
    of_somebody(tmp_path / "fresh")
    wanted = content(tmp_path / "fresh")
    out = tmp_path / "out"
    old_export(out)
    of_somebody(out)
    write(out)
    assert content(out) == wanted and "c" not in wanted
    write(out, a="alone")
    assert {*content(out)} == {"a", "mine.txt", "docs/mine.txt", REPORT, PAGE}


def old_export_among_others(out):
    old_export(out)
    of_somebody(out)


@pytest.mark.parametrize(("start", "every"), [(old_export_among_others, 1), (lambda out: None, 6)])
def test_killed_in_front_of_every_change_the_same_command_succeeds(tmp_path, start, every):
    out, whole = tmp_path / "out", tmp_path / "whole"
    start(whole)
    write(whole)
    wanted, theirs = content(whole), {name for name in content(whole) if "mine" in name}
    start(out)
    before = content(out) if out.exists() else None
    deadly = 0
    for deadly in deaths(lambda: write(out), every):  # noqa: B007
        left = content(out) if out.exists() else {}
        assert all(left[name] == wanted[name] for name in theirs)
        shown = {name: value for name, value in left.items() if not name.startswith(".ssl3d-export")}
        if REPORT in shown:  # there is an export: the old one or the new one, whole
            assert shown in (before, wanted)
        write(out)
        assert content(out) == wanted
        shutil.rmtree(out)
        start(out)
    assert deadly > 20


def test_killed_twice_it_succeeds_too(tmp_path):
    out, kept = tmp_path / "out", tmp_path / "kept"
    write(tmp_path / "whole")
    wanted = content(tmp_path / "whole")
    for _ in deaths(lambda: write(out), every=11):
        shutil.copytree(out, kept) if out.exists() else kept.mkdir()
        for _ in deaths(lambda: write(out, a="second", c="second"), every=11):
            write(out)
            assert content(out) == wanted
            shutil.rmtree(out)
            shutil.copytree(kept, out)
        shutil.rmtree(out)
        shutil.rmtree(kept)


def test_a_file_that_came_after_a_kill_is_not_overwritten(tmp_path):
    out = tmp_path / "out"
    for _ in deaths(lambda: write(out), every=2):
        if not (out / "a").exists() and "a" not in written(out).files:
            out.mkdir(exist_ok=True)
            (out / "a").write_text("mine")
            with pytest.raises(ValueError, match=r"its 'a' would be overwritten, .* give another folder"):
                write(out)
            assert (out / "a").read_text() == "mine"
        shutil.rmtree(out, ignore_errors=True)


def test_what_is_raised_leaves_the_folder_as_it_was(tmp_path):
    out = tmp_path / "new" / "out"
    for before in (None, "old"):
        if before:
            old_export(out)
        found = content(out) if before else None
        with pytest.raises(OSError, match="disk full"), ExportFolder(out, "hub") as folder:
            folder.write_text("a", "half")
            raise OSError("disk full")
        assert (content(out) if out.exists() else None) == found


def test_two_exports_at_once_into_one_folder_are_refused(tmp_path):
    out = tmp_path / "out"
    with ExportFolder(out, "hub") as folder:
        folder.write_text("a", "first")
        with pytest.raises(ValueError, match="another export is writing there; wait for its end, or give another"):
            write(out)
        folder.write_json(REPORT, {"to": "hub", "files": ["a", REPORT]})
    assert {*content(out)} == {"a", REPORT}
    write(out)
    assert (out / "a").read_text() == "new"


@pytest.mark.parametrize("name", ["a", "docs", REPORT, PAGE])
def test_files_of_somebody_else_are_refused(tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("{}")
    with pytest.raises(ValueError, match=f"--out .*out: its '{name}' would be overwritten, .* give another folder"):
        write(out)
    assert content(out) == {name: b"{}"}
    (out / name).unlink()
    (out / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="would be overwritten"):
        write(out)


def test_a_report_that_lists_files_elsewhere_removes_none(tmp_path):
    out = tmp_path / "out"
    (tmp_path / "precious").write_text("mine")
    out.mkdir()
    for name in ("../precious", str(tmp_path / "precious"), "docs/../../precious", 7, ".", ""):
        (out / REPORT).write_text(json.dumps({"to": "hub", "files": [name, "gone", REPORT]}))
        write(out)
        assert (tmp_path / "precious").read_text() == "mine"
        shutil.rmtree(out)
        out.mkdir()


def test_another_target_is_refused_before_anything_is_read(tmp_path):
    write(tmp_path / "out", to="hub")
    found = content(tmp_path / "out")
    with pytest.raises(ValueError, match=r"out holds an export to hub, .* give --to nnunet another folder"):
        export(tmp_path / "no such run", "nnunet", tmp_path / "out")
    assert content(tmp_path / "out") == found


@pytest.fixture
def run(backbone, tmp_path):
    content = {
        "step": 3, "average": None, "exported": "backbone.", "trained_decoder": True, "recipe": {},
        "model": {f"backbone.{name}": value for name, value in backbone.state_dict().items()},
        "backbone_spec": checkpoint.spec_to_dict(backbone.spec()), "input_size": [8, 24, 16],
    }  # fmt: skip
    checkpoint.save(tmp_path / "run", content)
    return tmp_path / "run"


def test_a_run_whose_export_was_killed_is_exported_by_the_same_command(run, tmp_path):
    out = tmp_path / "out"
    export(run, "safetensors", tmp_path / "whole")
    wanted = content(tmp_path / "whole")
    for _ in deaths(lambda: export(run, "safetensors", out), every=8):
        export(run, "safetensors", out)
        assert content(out) == wanted
        shutil.rmtree(out)


def test_an_export_to_nnunet_that_is_killed_leaves_plans_that_are_whole(run, plans_file, tmp_path):
    out, plans = tmp_path / "out", plans_file()
    old = plans.read_text()
    export(run, "nnunet", tmp_path / "whole", plans=plans)
    new, names = plans.read_text(), {*content(tmp_path / "whole")}
    plans.write_text(old)
    for _ in deaths(lambda: export(run, "nnunet", out, plans=plans), every=15):
        assert plans.read_text() in (old, new)
        export(run, "nnunet", out, plans=plans)
        assert plans.read_text() == new and {*content(out)} == names
        shutil.rmtree(out)
        plans.write_text(old)


def test_plans_stay_as_they_are_where_the_folder_is_refused(run, plans_file, tmp_path):
    plans = plans_file()
    old = plans.read_text()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "HOW_TO.md").write_text("mine")
    with pytest.raises(ValueError, match=r"its 'HOW_TO\.md' would be overwritten"):
        export(run, "nnunet", tmp_path / "out", plans=plans)
    assert plans.read_text() == old and content(tmp_path / "out") == {"HOW_TO.md": b"mine"}
    assert not list(tmp_path.glob("*.bak*"))


def test_of_a_hub_folder_nothing_of_another_run_stays(run, tmp_path):
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (run / "recipe.yaml").write_text("task: {_target_: ssl3d.tasks.mae.MAE}\ndata: {batch_size: 2}\n")
    out = tmp_path / "out"
    export(run, "hub", out)
    assert (out / "curve.png").exists() and (out / "recipe.yaml").exists()
    export(run / "checkpoints" / "last.pt", "hub", out)  # no run directory: no curve, no recipe
    assert {*content(out)} == {"model.safetensors", "model.json", "config.json", "README.md", REPORT, PAGE}
    export(run, "hub", out)
    assert {*json.loads((out / REPORT).read_text())["files"]} == {*content(out)} >= {"curve.png"}
