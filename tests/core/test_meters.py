"""What a line of metrics says of the machine, and of the volumes that were seen."""

from __future__ import annotations

import pytest
import torch

from ssl3d import gpus, meters
from ssl3d.log import MetricLog, read_metrics
from ssl3d.train import train


@pytest.mark.parametrize(
    ("device", "key"),
    [
        ("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"), ("NVIDIA A100 80GB PCIe", "a100"), ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "4090"), ("Tesla V100-SXM2-32GB", "v100"), ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA B200", "b200"), ("NVIDIA H100 PCIe", None), ("NVIDIA GeForce RTX 2080 Ti", None), ("cpu", None),
    ],
)  # fmt: skip
def test_a_gpu_is_found_by_its_driver_s_name(device, key):
    assert gpus.find(device) == (None if key is None else gpus.GPUS[key])


def test_utilisation_is_counted_operations_of_the_peak(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(meters.time, "perf_counter", lambda: now[0])
    watch = meters.Watch(torch.device("cpu"), flops=30.0, peak=100.0)
    for _ in range(2):
        watch.start()
        now[0] += 0.5
        assert watch.wait(iter(["batch"])) == "batch"
        now[0] += 0.25
        watch.stop()
    line = watch.read()
    assert line["time/step"] == 0.75 and line["time/mfu"] == pytest.approx(30 / 75)
    assert line["time/data_share"] == 0.0 and line["time/peak_gib"] > 0
    assert "time/mfu" not in meters.Watch(torch.device("cpu")).read()


def test_a_line_tells_norm_rate_volumes_and_memory(tiny, tmp_path):
    run = train(tiny("run.log_every=1", "run.steps=6", "data.holdout=0.2"))
    lines = read_metrics(run / "metrics.jsonl")
    counts = [line["volumes"] for line in lines]
    assert counts == sorted(counts) and counts[0] <= 2 and 2 <= counts[-1] <= 5, "two regions a step, five volumes"
    for line in lines:
        assert line["grad_norm"] > 0 and line["lr"] >= 0 and line["samples"] == 2 * line["step"]
        assert line["time/peak_gib"] > 0 and "time/mfu" not in line


def test_volumes_and_sums_come_back(tmp_path):
    log = MetricLog(tmp_path / "metrics.jsonl", 4)
    log.saw(torch.tensor([1, 1, 3]))
    log.add({"loss": torch.tensor(2.0)})
    again = MetricLog(tmp_path / "metrics.jsonl", 4)
    again.resume(log.state(), torch.device("cpu"))
    again.add({"loss": torch.tensor(4.0)})
    assert again.volumes.tolist() == [0, 1, 0, 1] and again.means() == {"loss": 3.0}
    old = MetricLog(tmp_path / "metrics.jsonl", 4)
    old.resume({"sums": {}, "counts": {}}, torch.device("cpu"))
    assert int(old.volumes.sum()) == 0
