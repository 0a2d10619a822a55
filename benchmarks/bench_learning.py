"""That every pretext task learns: 300 steps on a CPU, the loss curve, a linear probe, and a short fine-tuning.

    python benchmarks/bench_learning.py [--tasks mae voco ...] [--data phantom hippocampus ct] [--out runs/learning]
    python benchmarks/bench_learning.py --pages       only draw pictures and tables into docs/ from what is in --out

Each task is trained by its own small recipe (the table in learning_tasks.py), then judged by `ssl3d evaluate`: a probe
against random encoders of the same network and, on the hippocampus, 100 steps of fine-tuning against scratch. What is
finished is kept, so the same call goes on; what the pages say of tasks that are not in --out stays (docs/acceptance/
learning.json). `--validate` judges by validation patients instead of test patients:
settings may be chosen by that, and by nothing else.
Real scans lie in --real (env SSL3D_DATA, default ../shared/data).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from learning_data import DATA, Data, prepare
from learning_report import pages, table
from learning_rows import collect
from learning_tasks import ENTRIES, load

from downstream.evaluator import evaluate
from downstream.suite import SUITES
from ssl3d import config
from ssl3d.train import train

ROOT = Path(__file__).resolve().parent.parent


def probe(tasks: list[str], data: Data, out: Path, results: str) -> None:
    """Probe the runs of these tasks, those in windows of one size in one evaluation: out/DATA/RESULTS[_ZxYxX]."""
    by_window: dict[tuple[int, int, int] | None, list[Path]] = {}
    for task in tasks:
        by_window.setdefault(ENTRIES[task].window, []).append(out / data.name / task)
    for window, runs in by_window.items():
        own = results if window is None else f"{results}_{'x'.join(map(str, window))}"
        evaluate(runs, suite(data, window), out / data.name / own)


def suite(data: Data, window: tuple[int, int, int] | None) -> dict[str, object]:
    """A linear layer on the frozen encoder, and the study's 100 steps of the whole network, on few labelled patients.

    `window`: what a network sees at once, where it is not what the data set says.
    """
    finetune = config.read("study_hippocampus", SUITES, kind="suite")["measures"]["finetune"]
    finetune |= {
        "n_labelled": [data.amount], "seeds": data.subsets, "score_at": [], "tune": {},
        "patch_size": list(window or data.crop or ()), "window": list(window or data.window),
        "optim": finetune["optim"] | {"lr": [3e-3]},
    }  # fmt: skip
    return {
        "name": data.name, "store": str(data.labelled), "dataset": data.name, "split": str(data.split),
        "allow_leak": not data.only_pool,  # slabs of one patient, whose unlabelled margins overlap
        "metrics": ["dice"], "pictures": 0, "overlap": 0.25, "workers": 1,
        "measures": {
            "probe": {
                "n_labelled": [data.amount], "seeds": data.subsets, "patch_size": list(window or data.window),
                "voxels_per_class": 1000,
            },
            "finetune": finetune if data.crop else None,
        },
    }  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(ENTRIES), default=list(ENTRIES))
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "learning")
    parser.add_argument("--real", type=Path, default=os.environ.get("SSL3D_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--pages", action="store_true", help="train nothing; write docs/ from what is in --out")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--quick", action="store_true", help="a smaller phantom, in an --out of its own")
    parser.add_argument("--validate", action="store_true", help="probe validation patients")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override recipes, to try things out")
    return parser.parse_args()


def main() -> int:
    o = arguments()
    torch.set_num_threads(1)
    if o.pages:
        pages(o.out, o.docs)
        return 0
    results = "validation" if o.validate else "probe"
    for name in o.data:
        data = prepare(name, o.out / "data", Path(o.real), o.quick)
        for task in o.tasks:
            began = time.perf_counter()
            train(load(task, data, o.out, o.set))
            print(f"{task} on {name}: {time.perf_counter() - began:.0f} s", flush=True)
        trained = [task for task in ENTRIES if (o.out / name / task / "checkpoints").is_dir()]
        probe(trained, data.for_validation() if o.validate else data, o.out, results)
        print(table(collect(o.out, name, results), {name: DATA[name]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
