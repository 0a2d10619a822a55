"""The study of docs/results/protocol.md: pre-train every method, then judge all by `ssl3d evaluate`.

    python benchmarks/study.py --out runs/study [--data hippocampus ...] [--jobs 2] [--only train|evaluate|pages]

What is finished is kept, so the same call goes on. Runs lie in OUT/<data>/<method>_<network>_<seed>, evaluations by
recipes/downstream/study_<study>.yaml in OUT/<study>/evaluation; `pages` copies what they found into
docs/results/<study>, and puts all methods beside each other in docs/methods/comparison.md, and each on its own page.
A study is called as its data set; "beyond" and "onward" hold further methods on the hippocampus, "matched",
"longer" and "speed" fine-tune some of its runs again.
Real scans lie in --real (env SSL3D_DATA, default ../shared/data).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch
from learning_data import Data, prepare
from study_arms import DATA_OF, METHODS, RUNS, Arm, arms, recipe
from study_methods import write_methods
from study_pages import write_pages
from study_pictures import draw_missing

from downstream.evaluator import evaluate
from ssl3d.train import train

ROOT = Path(__file__).resolve().parent.parent


def pretrain(arm: Arm, data: Data, out: Path) -> float:
    """Train one run in this process, or what is missing of it; seconds."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    train(recipe(arm, data, out))
    return time.perf_counter() - began


def pretrain_all(study: str, data: Data, out: Path, jobs: int) -> None:
    """Every run of a study, `jobs` at a time; those that learn from another run come after it.

    A run that fails is said at once, while the others go on. Raises RuntimeError naming those that failed.
    """
    failed = []
    taught = [arm for arm in arms(study) if METHODS[arm.method, arm.network].after]
    for wave in ([arm for arm in arms(study) if arm not in taught], taught):
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            running = {pool.submit(pretrain, arm, data, out): arm for arm in wave}
            for future in as_completed(running):
                name, error = running[future].name, future.exception()
                said = f"failed: {error}" if error else f"{future.result():.0f} s"
                failed += [name] if error else []
                print(f"{name} of {study}: {said}", flush=True)
        if failed:
            raise RuntimeError(f"{study}: {', '.join(failed)} failed, nothing is judged: what they say stands above")


def judge(study: str, data: Data, out: Path, overrides: list[str]) -> None:
    """The evaluation of a study, all its runs in one."""
    runs = [out / arm.data / arm.name for arm in arms(study)]
    given = [f"store={data.labelled}", f"split={data.split}", *overrides]
    evaluate(runs, f"study_{study}", out / study / "evaluation", given)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "study")
    parser.add_argument("--data", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--real", type=Path, default=os.environ.get("SSL3D_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--only", choices=["train", "evaluate", "pages"], help="one part of it")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override suites, to try things out")
    return parser.parse_args()


def main() -> int:
    o = arguments()
    for name in o.data:
        data = prepare(DATA_OF.get(name, name), o.out / "data", Path(o.real))
        for other in sorted({other for method in RUNS[name] for other in METHODS[method].beside}):
            prepare(other, o.out / "data", Path(o.real))
        if o.only in (None, "train"):
            pretrain_all(name, data, o.out, o.jobs)
        if o.only in (None, "evaluate"):
            judge(name, data, o.out, [f"workers={o.jobs}", *o.set])
        if o.only in (None, "pages"):
            write_pages(name, o.out, o.docs / "results")
    if o.only in (None, "pages"):
        draw_missing(o.out, o.docs / "methods" / "pictures")
        write_methods(o.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
