"""Fixtures every test may use: where the real data lie, one thread a process."""

from __future__ import annotations

import importlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)  # tests run in as many processes as there are cores; two threads each would only wait
DATA = Path(os.environ.get("SSL3D_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The conformance suites' trainings on one batch are slow tests: a hundred steps a task, for many variants."""
    for item in items:
        if item.name.partition("[")[0] == "test_one_batch_can_be_overfitted":
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts from the same global seed, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """A module of benchmarks/ by its name, imported as it imports its own: from its folder; forgotten afterwards."""
    folder = Path(__file__).parents[1] / "benchmarks"
    before = set(sys.modules)
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module
    own = {path.stem for path in folder.glob("*.py")}
    for name in own & (set(sys.modules) - before):
        del sys.modules[name]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans; the test is skipped without it."""
    if not DATA.is_dir():
        pytest.skip(f"no real scans at {DATA}: set SSL3D_DATA")
    return DATA


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of an S3-speaking server on this machine, started once a process of tests."""
    server = pytest.importorskip("moto.server", reason="needs moto[s3], flask and flask-cors (pip install '.[test]')")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Makes an empty bucket and gives its URL; this process and its children find the server by the environment."""
    pytest.importorskip("s3fs")
    import boto3

    settings = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    def make() -> str:
        name = f"bucket-{secrets.token_hex(6)}"
        boto3.client("s3").create_bucket(Bucket=name)
        return f"s3://{name}"

    return make
