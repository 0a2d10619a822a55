"""What a random 128^3 crop costs: our reader with and without its cache, our loader, a page-cache copy, and peers.

    python benchmarks/bench_loader.py [--store STORE.zarr] [--out DIR] [--repeats 9] [--quick] [--check]

Every method of ours, zarr-python and the copy read the same crops in every repeat, interleaved, so that other load on
the machine meets all of them; MONAI and TorchIO (`pip install -r benchmarks/requirements-loader.txt`) read crops of the
same volumes in the same run. Figures are CPU time, medians over repeats, and ratios within a repeat. Without --store, a
few CT-like volumes are made in a temporary folder (smooth anatomy, texture and noise, lossless ratio about 2.5).
`--check` fails (exit 1) when the direct reader costs more than 3.3 times the copy or more than a third of zarr-python,
or a crop from the cache more than 1.3 times the copy. A second table says by arithmetic whether a GPU would wait.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, cpu_ms, save, spread
from loader_peers import Method, peer_methods
from scipy import ndimage

from ssl3d import check, config, gpus
from ssl3d.data.cache import VoxelCache
from ssl3d.data.format import ChannelStats, VolumeAttributes
from ssl3d.data.loader import RegionLoader
from ssl3d.data.sampling import SamplingPlan
from ssl3d.data.store import Store, open_store
from ssl3d.data.write import build_index, create_store, write_volume
from ssl3d.regions import RegionSpec

MAX_OF_COPY, MAX_OF_ZARR, MAX_CACHED = 3.3, 1 / 3, 1.3
CORES, GPU, NETWORK_BATCH = 8, "h100", 8  # that are assumed: cores a GPU, and regions a step of the shipped recipe
BATCH = 4
COPY, DIRECT, ZARR = "page-cache copy (numpy memmap)", "direct reader", "zarr-python"
WAITS = "Would a GPU wait? By arithmetic: the step is an estimate"
CACHED, LOADER = "direct reader, cache in memory", f"loader, batches of {BATCH}"


def ct_like(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """(1,Z,Y,X) int16 HU: an elliptic body of smooth organs with texture and scanner noise, in air."""
    rng = np.random.default_rng(seed)

    def smooth(step: int) -> np.ndarray:
        coarse = rng.normal(size=[n // step + 3 for n in shape]).astype(np.float32)
        fine = ndimage.zoom(coarse, step, order=1)
        return fine[tuple(slice(n) for n in shape)]

    values = 60 * smooth(32) + 25 * smooth(8)
    values += rng.standard_normal(shape, dtype=np.float32) * 14
    z, y, x = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    body = (y / 0.7) ** 2 + (x / 0.9) ** 2 + 0 * z < 1
    air = -1000 + 4 * rng.standard_normal(shape, dtype=np.float32)
    return np.where(body, np.clip(values, -900, 1500), np.maximum(air, -1024)).astype(np.int16)[None]


def make_store(root: Path, volumes: int, shape: tuple[int, int, int]) -> None:
    """A store of CT-like volumes."""
    create_store(root)
    for i in range(volumes):
        image = ct_like(shape, i)
        stats = [ChannelStats(image.size, -400.0, 500.0, -1024, 1500, -1020, -300, 300, -1000, 1000, -400.0, 500.0)]
        attributes = VolumeAttributes(
            spacing=[1.0, 1.0, 1.0], affine=np.diag([-1.0, -1.0, 1.0, 1.0]).tolist(), scale=[1.0], offset=[0.0],
            modality=["ct"], original_affine=np.eye(4).tolist(), original_shape=list(shape)[::-1],
            original_spacing=[1.0, 1.0, 1.0], original_orientation="RAS", foreground_box=[[0, 0, 0], list(shape)],
            foreground_stats=stats, valid_stats=stats, subject=f"s{i}", session="1", fingerprint=str(i), source="made",
        )  # fmt: skip
        write_volume(root, f"ct{i}", image, attributes)
    build_index(root)


def crop_methods(store: Store, folder: Path, size: tuple[int, int, int], crops: int) -> dict[str, Method]:
    """name -> a call that reads `crops` crops, the same for every method."""
    import zarr

    plan = SamplingPlan([store], RegionSpec(size), seed=0)
    samples = [plan.sample(i) for i in range(crops)]
    by_zarr = open_store(store.path, direct=False)
    copies = {}
    for row in sorted({s.row for s in samples}):
        file = folder / f"{row}.npy"
        np.save(file, store.read(row, (0, 0, 0), store.shape(row)[1:]))
        copies[row] = np.load(file, mmap_mode="r")
    arrays = {row: zarr.open_array(f"{store.path}/volumes/{store.volume_id(row)}", mode="r") for row in copies}
    out = np.zeros((store.shape(samples[0].row)[0], *size), dtype=np.int16)
    kept = VoxelCache(2 * sum(array.nbytes for array in copies.values()))

    def box(sample):
        return (slice(None), *(slice(s, s + n) for s, n in zip(sample.start, size)))

    def copy():
        for s in samples:
            np.copyto(out, copies[s.row][box(s)])

    def direct():
        for s in samples:
            store.read(s.row, s.start, size, out=out)

    def from_cache():
        for s in samples:
            store.read(s.row, s.start, size, out=out, cache=kept)

    def through_zarr():
        for s in samples:
            arrays[s.row][box(s)]

    def check():
        for s in samples:
            assert (store.read(s.row, s.start, size) == copies[s.row][box(s)]).all()
            assert (store.read(s.row, s.start, size, cache=kept) == copies[s.row][box(s)]).all()
            assert (by_zarr.read(s.row, s.start, size) == copies[s.row][box(s)]).all()

    check()
    calls = {COPY: copy, DIRECT: direct, CACHED: from_cache, ZARR: through_zarr}
    return {name: (call, crops) for name, call in calls.items()}


def loader_method(store: Store, size: tuple[int, int, int], crops: int, cache_gb: float = 0.0) -> Method:
    """A call that takes `crops` crops from our loader. Without workers: those would read ahead beside other methods."""
    plan = SamplingPlan([store], RegionSpec(size), seed=1)
    batches = iter(RegionLoader(plan, BATCH, workers=0, cache_gb=cache_gb))

    def take():
        for _ in range(crops // BATCH):
            next(batches)  # let go at once, as a training loop does

    return take, crops


def beside_busy_main(store: Store, size: tuple[int, int, int], steps: int) -> list[dict[str, float | str]]:
    """Wall milliseconds of a step that keeps the main thread busy (Python and small torch calls), per backend."""
    weights, state = torch.randn(8, 1, 3, 3, 3), torch.randn(1, 1, 48, 48, 48)

    def work():
        total = 0
        for i in range(400_000):
            total += i
        for _ in range(20):
            torch.nn.functional.conv3d(state, weights)

    def run(batches=None) -> float:
        before = time.perf_counter()
        for _ in range(steps):
            if batches is not None:
                next(batches)
            work()
        return (time.perf_counter() - before) * 1e3 / steps

    run()
    rows: list[dict[str, float | str]] = [{"loader": "none", "step, wall ms": run()}]
    plan = SamplingPlan([store], RegionSpec(size), seed=2)
    for backend in ("threads", "processes"):
        with RegionLoader(plan, BATCH, workers="auto", backend=backend) as loader:
            batches = iter(loader)
            list(islice(batches, 3))
            rows.append({"loader": backend, "step, wall ms": run(batches)})
    return rows


def gpu_waits(cpu_ms_a_crop: dict[str, float], size: tuple[int, int, int]) -> list[dict[str, str | float]]:
    """Whether a GPU would wait for data: what the readers of CORES cores deliver against what a step takes in.

    The crops are measured here; the step is an ESTIMATE (counted operations at a share of the data sheet's peak), and
    so is that cores read beside one another as fast as one alone.
    """
    changes = [f"task.patch_size={list(size)}", f"data.batch_size={NETWORK_BATCH}", "run.precision=bf16-mixed"]
    recipe = config.load("mae_resenc_l", changes, unset=("data.store",))
    flops = check.step_flops(recipe, config.build_task(recipe, check._shapes(recipe)))
    rows: list[dict[str, str | float]] = []
    for share in reversed(gpus.UTILISATION):
        seconds = flops / (gpus.GPUS[GPU].tflops * 1e12 * share)
        for name, milliseconds in cpu_ms_a_crop.items():
            delivered = (CORES - 1) * 1e3 / milliseconds
            wanted = NETWORK_BATCH / seconds
            rows.append({
                "crops from": name, f"estimated share of {gpus.GPUS[GPU].name}'s peak": f"{share:.0%}",
                "estimated step, s": seconds, "crops wanted a second": wanted,
                f"crops {CORES - 1} readers deliver": delivered,
                "share of a step spent waiting": f"{max(0.0, 1 - delivered / wanted):.0%}",
            })  # fmt: skip
    return rows


def measure(methods: dict[str, Method], repeats: int) -> dict[str, list[float]]:
    """CPU milliseconds a crop of every method, in each of the interleaved repeats."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for call, _ in methods.values():
        call()  # warm: page cache, open volumes
    for _ in range(repeats):
        for name, (call, crops) in methods.items():
            times[name].append(cpu_ms(call) / crops)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="a real store instead of made volumes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--size", type=int, nargs=3, default=[128, 128, 128], metavar=("Z", "Y", "X"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--crops", type=int, default=24, help="crops per repeat and method")
    parser.add_argument("--quick", action="store_true", help="smaller volumes and fewer repeats")
    parser.add_argument("--check", action="store_true", help="exit 1 when the goals are missed")
    o = parser.parse_args()
    torch.set_num_threads(1)
    size, repeats, crops = tuple(o.size), (3 if o.quick else o.repeats), (8 if o.quick else o.crops)
    with tempfile.TemporaryDirectory() as temporary:
        root = o.store
        if root is None:
            root = Path(temporary, "store.zarr")
            make_store(root, 1 if o.quick else 3, (160, 256, 256) if o.quick else (200, 512, 512))
        store = open_store(root)
        raw = sum(2 * c * int(np.prod(s)) for c, s in zip(store.column("channels"), store.column("shape")))
        methods = crop_methods(store, Path(temporary), size, crops)
        methods[LOADER] = loader_method(store, size, crops)
        methods[f"{LOADER}, cache in memory"] = loader_method(store, size, crops, cache_gb=raw / 1e9)
        peers, missing = peer_methods(store, Path(temporary, "peers"), size)
        times = measure(methods | peers, repeats)
        busy = beside_busy_main(store, size, 3 if o.quick else 20)

    ratios = {
        name: {
            "of the copy": statistics.median([a / b for a, b in zip(values, times[COPY])]),
            "of zarr-python": statistics.median([a / b for a, b in zip(values, times[ZARR])]),
        }
        for name, values in times.items()
    }
    rows = [{"method": n, "CPU ms a crop": spread(v)["median"], **ratios[n]} for n, v in times.items()]
    direct, cached = ratios[DIRECT], ratios[CACHED]
    met = direct["of the copy"] <= MAX_OF_COPY and direct["of zarr-python"] <= MAX_OF_ZARR
    met = met and cached["of the copy"] <= MAX_CACHED
    compression = raw / int(store.column("bytes").sum())
    details = {
        "size": list(size), "crops": crops, "repeats": repeats, "lossless_ratio": compression,
        "cpu_ms": {n: spread(v) for n, v in times.items()}, "beside_busy_main": busy, "missing": missing,
        "goals": {"of the copy": MAX_OF_COPY, "of zarr-python": MAX_OF_ZARR, "cached": MAX_CACHED, "met": met},
    }  # fmt: skip
    title = f"A random {'x'.join(map(str, size))} crop (store {compression:.2f} times smaller than int16)"
    waits = gpu_waits({n: spread(v)["median"] for n, v in times.items() if n.startswith(LOADER)}, size)
    save("bench_loader", title, rows, details, o.out, {WAITS: waits})
    print("\n".join([f"step beside {b['loader']}: {b['step, wall ms']:.1f} ms wall" for b in busy] + missing))
    return 1 if o.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
