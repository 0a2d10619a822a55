"""A child process that dies, hangs or fills the memory takes one file with it, never the run."""

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tests_isolated as jobs
import zoo
from tests_prep import save, smooth

from preprocessing import convert, isolation, job
from preprocessing.refusal import Refusal
from preprocessing.source import Source
from ssl3d.data.store import open_store

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limits and /proc")


@pytest.fixture(autouse=True)
def fresh():
    """No child left by an earlier test, none left behind."""
    isolation.end_child()
    yield
    isolation.end_child()


def test_a_call_gives_what_the_function_gives_in_another_process_that_is_kept():
    assert isolation.run(jobs.add, 2, 3) == 5
    first, second = isolation.run(jobs.own_pid), isolation.run(jobs.own_pid)
    assert first == second != os.getpid()


@pytest.mark.parametrize(
    ("function", "arguments", "limits", "reason"),
    [
        (jobs.segfault, (), {}, "worker_died.*SIGSEGV"),
        (os.abort, (), {}, "worker_died.*SIGABRT"),
        (os._exit, (7,), {}, "worker_died.*exit code 7"),
        (os.kill, None, {}, "worker_died.*SIGKILL, probably out of memory"),
        (jobs.hang, (), {"timeout_s": 0.2}, "timed_out.*0.2 seconds"),
        pytest.param(jobs.fill, (1 << 32,), {"memory_bytes": 1 << 30}, "too_large.*1 GiB", marks=linux),
    ],
)
def test_what_goes_wrong_is_a_refusal_and_the_next_call_works(function, arguments, limits, reason):
    if arguments is None:
        arguments = (isolation.run(jobs.own_pid), signal.SIGKILL)
        isolation._child().jobs = 0  # as if it were its first
    with pytest.raises(Refusal, match=reason):
        isolation.run(function, *arguments, **limits)
    assert isolation.run(jobs.add, 2, 3) == 5


@linux
def test_memory_below_the_ceiling_may_be_used_and_the_ceiling_is_each_jobs_own():
    assert isolation.run(jobs.fill, 1 << 28, memory_bytes=1 << 30) == 1
    assert isolation.run(jobs.fill, 1 << 28) == 1


@linux
def test_no_job_is_blamed_for_what_an_earlier_one_left():
    assert isolation.run(jobs.die_if_used) == 1
    assert isolation.run(jobs.die_if_used) == 1  # the child that died of the first job's rest was replaced
    assert isolation.run(jobs.add, 1, 1) == 2


def test_exceptions_cross_with_their_class_text_and_traceback():
    with pytest.raises(ValueError, match="some text") as caught:
        isolation.run(jobs.fail, "some text")
    assert any("in fail" in note for note in caught.value.__notes__)
    with pytest.raises(RuntimeError, match="Unpicklable: first"):
        isolation.run(jobs.fail_unpicklably)
    with pytest.raises(Refusal, match="colour"):
        isolation.run(jobs.refuse)


def test_the_child_follows_its_parent_to_other_folders_and_environments(tmp_path, monkeypatch):
    isolation.run(jobs.add, 1, 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSL3D_TEST_WORD", "here")
    assert isolation.run(jobs.surroundings, "SSL3D_TEST_WORD") == ("here", str(tmp_path), "1")
    monkeypatch.delenv("SSL3D_TEST_WORD")
    assert isolation.run(jobs.surroundings, "SSL3D_TEST_WORD")[0] is None


def test_inside_a_child_a_call_is_a_call():
    outer, inner = isolation.run(jobs.own_pid_and_that_of_a_job_of_mine)
    assert outer == inner


def test_each_thread_has_its_own_child():
    pids = {isolation.run(jobs.own_pid)}
    thread = threading.Thread(target=lambda: pids.add(isolation.run(jobs.own_pid)))
    thread.start()
    thread.join()
    assert len(pids) == 2


def test_children_end_with_a_parent_that_is_killed():
    script = (
        "import os, sys, time; from preprocessing import isolation;"
        "print(isolation.run(os.getpid), flush=True); isolation.run(time.sleep, 600)"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_not_run_twice(tmp_path):
    save(tmp_path / "scan.nii.gz", smooth((9, 8, 7)))
    script = tmp_path / "plain.py"
    script.write_text(
        "import preprocessing\nprint('begins')\npreprocessing.convert('scan.nii.gz', 'store', workers=1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("begins") == 1 and (tmp_path / "store" / "index.parquet").exists()


@linux
@pytest.mark.slow
def test_the_run_goes_on_when_readers_crash_and_fill_the_memory(tmp_path, monkeypatch):
    names = ("a_good", "fill", "segfault", "z_good")
    for number, name in enumerate(names):
        save(tmp_path / "in" / f"{name}.nii.gz", smooth((9, 8, 7), number))
    monkeypatch.setattr(job, "convert_here", jobs.convert_or_misbehave)
    report = convert(tmp_path / "in", tmp_path / "store", workers=1, memory=8)
    with (tmp_path / "store" / "refused.csv").open() as file:
        refused = {Path(row["source"]).name: (row["reason"], row["detail"]) for row in csv.DictReader(file)}
    assert {name: reason for name, (reason, _) in refused.items()} == {
        "fill.nii.gz": "too_large", "segfault.nii.gz": "worker_died",
    }  # fmt: skip
    assert "SIGSEGV" in refused["segfault.nii.gz"][1]
    assert report.converted == 2 and report.exit_code == 0
    monkeypatch.undo()
    save(tmp_path / "good" / "a_good.nii.gz", smooth((9, 8, 7), 0))
    convert(tmp_path / "good", tmp_path / "direct", workers=1)
    a, b = open_store(tmp_path / "store"), open_store(tmp_path / "direct")
    assert a.attributes(0).fingerprint == b.attributes(0).fingerprint
    np.testing.assert_array_equal(a.read(0, (0, 0, 0), (7, 8, 9)), b.read(0, (0, 0, 0), (7, 8, 9)))


def test_a_source_that_hangs_is_refused_when_its_time_is_over(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "convert_here", jobs.convert_or_misbehave)
    source = Source("hang", "", "", "", [tmp_path / "hang.nii.gz"], "", "", "", frames=2)
    settings = job.Settings(str(tmp_path / "store"), "keep", "auto", timeout_s=0.3)
    outcomes = job.convert_source(source, settings)
    assert [(o.volume_id, o.refusal.reason) for o in outcomes] == [
        ("hang_t0000", "timed_out"), ("hang_t0001", "timed_out"),
    ]  # fmt: skip


@linux
@pytest.mark.slow
def test_a_file_that_holds_more_than_the_memory_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    huge = tmp_path / "in" / "huge.nii"
    array = np.zeros((2, 2, 2), np.uint8)
    huge.write_bytes(zoo.nifti(array, np.eye(4), nib.Nifti1Image, (zoo.DIM, "<4h", 3, 2000, 2000, 2000)))
    os.truncate(huge, 352 + 2000**3)  # 8 GB that take no place on the disk
    save(tmp_path / "in" / "small.nii.gz", smooth((9, 8, 7)))
    report = convert(tmp_path / "in", tmp_path / "store", workers=1, memory=1)
    assert [reason for _, reason in report.refused] == ["too_large"] and report.converted == 1


@pytest.mark.slow
def test_a_series_that_makes_progress_is_not_given_up(tmp_path, monkeypatch):
    save(tmp_path / "series.nii.gz", np.stack([smooth((9, 8, 7), k) for k in range(5)], -1))
    monkeypatch.setattr(job, "convert_here", jobs.convert_or_misbehave)
    report = convert(tmp_path / "series.nii.gz", tmp_path / "store", workers=1)
    assert report.converted == 5 and not report.refused


@pytest.mark.slow
def test_a_child_writes_the_bytes_that_this_process_writes(tmp_path, monkeypatch):
    path = save(tmp_path / "scan.nii.gz", smooth((30, 28, 22)), np.diag([0.7, 0.9, 1.4, 1]))
    convert(path, tmp_path / "child", workers=1)
    monkeypatch.setattr(isolation, "run", lambda function, *arguments, **_: function(*arguments))
    convert(path, tmp_path / "here", workers=1)
    for file in sorted((tmp_path / "child").rglob("*")):
        if file.is_file() and file.suffix != ".lock" and file.name != ".lock":
            assert file.read_bytes() == (tmp_path / "here" / file.relative_to(tmp_path / "child")).read_bytes()
