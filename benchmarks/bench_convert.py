"""What converting a volume costs: resampling, writing, and the whole way from a file into a store.

    python benchmarks/bench_convert.py [--data DIR] [--out DIR] [--repeats 5] [--fast] [--quick] [--check]

Resampling: a 512x512x200 CT of 0.7x0.7x1.5 mm to 1 mm by preprocessing.resample, torch's trilinear resize of the same
float32 array to the same size, MONAI's Spacing (bilinear), scipy.ndimage order 3 and SimpleITK BSpline, on 1 and on 2
threads; and the largest difference from scipy order 3 inside the body of a CT that is enlarged. Writing: the resampled
int16 volume by ssl3d.data.write against compressing it in memory with the same codec, zarr-python and blosc2 (if it is
installed). Converting: every CT below --data (default: SSL3D_DATA or ../shared/data) from its file into a store on one
core, with volumes an hour and a projection to 100,000 volumes. Without such files a synthetic CT is made; the tables
say which it was. Figures are wall seconds, medians over repeats that are interleaved, and ratios within a repeat; scipy
and SimpleITK run once (--fast leaves them out). `--check` fails (exit 1) when resampling takes more than 3 times as
long as torch's trilinear resize, differs by more than 1.1 HU, or writing takes more than 1.5 times the compression.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from bench_loader import ct_like
from common import RESULTS, save, wall_ms
from numcodecs import Blosc
from scipy import ndimage
from threadpoolctl import threadpool_limits

from preprocessing import readers
from preprocessing.geometry import AxisGrid, Scan, canonical, resampled_grid
from preprocessing.resample import resample
from preprocessing.source import Source
from preprocessing.volume import Volume, build
from ssl3d.data import format as fmt
from ssl3d.data.write import create_store, write_volume

MAX_OF_TRILINEAR, MAX_HU, MAX_OF_COMPRESSION = 3.0, 1.1, 1.5
SPACING = (1.5, 0.7, 0.7)  # mm (z, y, x) of the CT that is resampled to 1 mm
PROJECTED = 100_000

Methods = dict[str, Callable[[], object]]


def ct_files(data: Path) -> list[Path]:
    """The CT volumes of the data folder, largest first."""
    found = [p for p in sorted(data.glob("ct_*/**/*.nii.gz")) if "ct" in p.name and "segmentations" not in p.parts]
    return sorted(found, key=lambda p: -p.stat().st_size)


def make_ct(folder: Path, shape: tuple[int, int, int]) -> Path:
    """A synthetic CT as a .nii.gz file, from a scanner that pads what lies outside its circle."""
    image = ct_like(shape, 0)[0]
    y, x = np.ogrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    image[:, np.hypot(y, x) > 1] = -3024
    file = folder / "synthetic_ct.nii.gz"
    nib.save(nib.Nifti1Image(image.transpose(2, 1, 0), np.diag([-0.7, -0.7, 1.5, 1.0])), file)
    return file


def hounsfield(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """(Z, Y, X) float32 HU of exactly `shape`: the file's voxels, mirrored where it has fewer, air where padded."""
    values = canonical(next(readers.read(file))).data[0].astype(np.float32)
    for axis, n in enumerate(shape):
        there_and_back = np.concatenate([np.arange(values.shape[axis]), np.arange(values.shape[axis])[::-1]])
        values = values.take(np.resize(there_and_back, n), axis=axis)
    return np.ascontiguousarray(np.maximum(values, -1024))


def timed(methods: Methods, repeats: int) -> dict[str, list[float]]:
    """Wall seconds of each repeat, every method in turn, after one call to warm up."""
    for call in methods.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, call in methods.items():
            _settle()
            times[name].append(wall_ms(call) / 1e3)
    return times


def _settle() -> None:
    """Let the disk finish what the method before left in the page cache: its own flush pays for it, not the next."""
    if hasattr(os, "sync"):
        os.sync()


def ratio(times: dict[str, list[float]], a: str, b: str) -> float:
    """Median over repeats of a's time in terms of b's."""
    return statistics.median(x / y for x, y in zip(times[a], times[b]))


def scipy_order_3(volume: np.ndarray, axes: list[AxisGrid]) -> np.ndarray:
    """The same grid by scipy: prefiltered cubic B-spline, no low-pass where an axis shrinks."""
    size = tuple(g.n for g in axes)
    steps, starts = [g.step for g in axes], [g.start for g in axes]
    return ndimage.affine_transform(volume, steps, starts, size, order=3, mode="reflect")


def itk_bspline(volume: np.ndarray, axes: list[AxisGrid], threads: int) -> object:
    """The same grid by SimpleITK's cubic B-spline."""
    import SimpleITK as sitk

    resampler = sitk.ResampleImageFilter()
    resampler.SetNumberOfThreads(threads)
    resampler.SetInterpolator(sitk.sitkBSpline)
    resampler.SetSize([g.n for g in axes[::-1]])
    resampler.SetOutputSpacing([g.step for g in axes[::-1]])
    resampler.SetOutputOrigin([g.start for g in axes[::-1]])
    return resampler.Execute(sitk.GetImageFromArray(volume))


def monai_spacing(volume: torch.Tensor) -> Callable[[], object]:
    """A call of MONAI's Spacing on a tensor (1, Z, Y, X)."""
    from monai.data import MetaTensor
    from monai.transforms import Spacing

    moved = MetaTensor(volume[0], affine=torch.diag(torch.tensor([*SPACING, 1.0])))
    transform = Spacing(pixdim=(1.0, 1.0, 1.0), mode="bilinear")
    return lambda: transform(moved)


def bench_resampling(volume: np.ndarray, repeats: int, fast: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """(rows of the table, {threads: our time in terms of trilinear})."""
    axes, _ = resampled_grid(volume.shape, np.diag([*SPACING, 1.0]), (1.0, 1.0, 1.0))
    size = tuple(g.n for g in axes)
    tensor = torch.from_numpy(volume)[None, None]
    rows, goals = [], {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        ours, trilinear, slow = "ssl3d (order 3, anti-aliased)", "torch trilinear", {}
        methods: Methods = {
            ours: lambda threads=threads: resample(volume, axes, threads=threads),
            trilinear: lambda: torch.nn.functional.interpolate(tensor, size=size, mode="trilinear"),
            "MONAI Spacing, bilinear": monai_spacing(tensor[0]),
        }
        times = timed(methods, repeats)
        if not fast:
            slow["SimpleITK BSpline"] = wall_ms(lambda t=threads: itk_bspline(volume, axes, t)) / 1e3
            if threads == 1:  # it has no threads
                slow["scipy.ndimage, order 3"] = wall_ms(lambda: scipy_order_3(volume, axes)) / 1e3
        goals[str(threads)] = ratio(times, ours, trilinear)
        seconds = {name: statistics.median(t) for name, t in times.items()} | slow
        relative = {name: ratio(times, name, trilinear) for name in times}
        for name, value in seconds.items():
            of_trilinear = relative.get(name, value / seconds[trilinear])
            rows.append({"method": name, "threads": threads, "seconds": value, "of trilinear": of_trilinear})
    torch.set_num_threads(1)
    return rows, goals


def largest_difference(volume: np.ndarray) -> float:
    """HU by which an enlarged CT differs from scipy order 3, in its body and off the border of the volume."""
    axes, _ = resampled_grid(volume.shape, np.diag([2.5, 1.3, 1.3, 1.0]), (1.0, 1.0, 1.0))
    expected = scipy_order_3(volume.astype(np.float64), axes)
    difference = np.abs(resample(volume, axes) - expected)
    body = expected > -500
    inner = tuple(slice(n // 10, n - n // 10) for n in expected.shape)
    return float(difference[inner][body[inner]].max())


def chunks_of(image: np.ndarray) -> Iterator[np.ndarray]:
    """The store's chunks of (1, Z, Y, X), each in one piece."""
    for z in range(0, image.shape[1], fmt.CHUNK):
        for y in range(0, image.shape[2], fmt.CHUNK):
            for x in range(0, image.shape[3], fmt.CHUNK):
                part = image[0, z : z + fmt.CHUNK, y : y + fmt.CHUNK, x : x + fmt.CHUNK]
                yield np.ascontiguousarray(part)


def writers(folder: Path, volume: Volume) -> tuple[Methods, dict[str, Path | None]]:
    """(name -> a call that writes or compresses the volume once more, the folder each writes to)."""
    import zarr

    image = volume.image
    codec = Blosc(fmt.BLOSC["cname"], fmt.BLOSC["clevel"], getattr(Blosc, fmt.BLOSC["shuffle"].upper()))
    store = folder / "store.zarr"
    create_store(store)

    written = count()  # nothing is overwritten: removing a file takes its time too

    def ours() -> None:
        write_volume(store, f"ct{next(written)}", image, volume.attributes)

    def zarr_python(name: str, **options: Any) -> None:
        path = folder / name / str(next(written))
        zarr.create_array(path, shape=image.shape, dtype=image.dtype, **options)[...] = image

    blosc = zarr.codecs.BloscCodec(typesize=2, **fmt.BLOSC)
    layout = {"chunks": (1, fmt.CHUNK, fmt.CHUNK, fmt.CHUNK), "shards": fmt.shard_shape(image.shape)}
    methods: Methods = {
        "compression in memory, one buffer": lambda: codec.encode(image),
        "compression in memory, chunk by chunk": lambda: [codec.encode(chunk) for chunk in chunks_of(image)],
        "ssl3d write_volume": ours,
        "zarr-python, same layout": lambda: zarr_python("same", compressors=blosc, **layout),
        "zarr-python, its defaults": lambda: zarr_python("default"),
    }
    left: dict[str, Path | None] = dict.fromkeys(methods)
    left |= {"ssl3d write_volume": store / fmt.VOLUMES}
    left |= {"zarr-python, same layout": folder / "same", "zarr-python, its defaults": folder / "default"}
    for name, options in blosc2_options().items():
        left[name] = folder / name
        (folder / name).mkdir()
        methods[name] = lambda name=name, options=options: write_blosc2(
            image, folder / name / f"{next(written)}.b2nd", options
        )
    return methods, left


def blosc2_options() -> dict[str, dict[str, Any]]:
    """name -> compression parameters; none without blosc2. The second is what nnU-Net and nnssl store with."""
    try:
        import blosc2
    except ImportError:
        return {}
    shuffled = {"filters": [blosc2.Filter.BITSHUFFLE], "nthreads": 1}
    return {
        "blosc2, lz4 level 5": {"codec": blosc2.Codec.LZ4, "clevel": 5, **shuffled},
        "blosc2, zstd level 8": {"codec": blosc2.Codec.ZSTD, "clevel": 8, "nthreads": 1},
    }


def write_blosc2(image: np.ndarray, file: Path, options: dict[str, Any]) -> None:
    """One array in one file, blocks of the store's chunk size."""
    import blosc2

    blosc2.asarray(image, urlpath=str(file), mode="w", blocks=(1, *(min(fmt.CHUNK, n) for n in image.shape[1:])),
                   cparams=options)  # fmt: skip


def bench_writing(volume: Volume, repeats: int) -> tuple[list[dict[str, Any]], float]:
    """(rows, our time in terms of the compression of the same array in memory)."""
    with tempfile.TemporaryDirectory() as temporary:
        methods, left = writers(Path(temporary), volume)
        times = timed(methods, repeats)
        sizes = {name: path and _bytes_of(path) / (repeats + 1) for name, path in left.items()}
    yardstick = next(iter(methods))
    rows = [
        {"method": name, "seconds": statistics.median(t), "of compression": ratio(times, name, yardstick),
         "MB on the disk": "" if sizes[name] is None else (sizes[name] or 0) / 1e6}
        for name, t in times.items()
    ]  # fmt: skip
    return rows, ratio(times, "ssl3d write_volume", yardstick)


def _bytes_of(path: Path) -> int:
    return sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())


def source_of(file: Path) -> Source:
    """The source that a conversion would make of a plain file."""
    name = readers.split_extension(file.name)[0]
    return Source(name, file.name, file.name, file.name, [file], name, name, "")


def convert_stages(file: Path, root: Path) -> tuple[dict[str, float], Scan, Volume]:
    """({stage: wall seconds}, scan, volume) of one file on its way into a store."""
    marks = [time.perf_counter()]
    scan = next(readers.read(file))
    marks.append(time.perf_counter())
    source = source_of(file)
    volume = build(source.id, source, scan, None, "iso1", "ct")
    marks.append(time.perf_counter())
    write_volume(root, source.id, volume.image, volume.attributes, valid=volume.valid)
    marks.append(time.perf_counter())
    return dict(zip(("read", "build", "write"), np.diff(marks).tolist())), scan, volume


def bench_conversion(files: list[Path], repeats: int) -> list[dict[str, Any]]:
    """A row a file: stages, volumes an hour on one core, bytes, and the most memory of one conversion."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, "store.zarr")
        create_store(root)
        for file in files:
            runs = [convert_stages(file, root)[0] for _ in range(repeats)]
            stages = {k: statistics.median(run[k] for run in runs) for k in runs[0]}
            tracemalloc.start()
            _, scan, volume = convert_stages(file, root)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            seconds = sum(stages.values())
            stored = sum(_bytes_of(root / kind / source_of(file).id) for kind in fmt.KINDS)
            own = max(scan.data.nbytes, volume.image.nbytes)
            rows.append({
                "CT": f"{file.parent.name}/{file.name}", "voxels": "x".join(map(str, scan.data.shape[1:])),
                "stored": "x".join(map(str, volume.image.shape[:0:-1])), **stages,
                "volumes/h/core": round(3600 / seconds),
                "MB stored": stored / 1e6, "peak memory / volume": peak / own,
            })  # fmt: skip
            del scan, volume
    return rows


def projection(row: dict[str, Any]) -> dict[str, float | str]:
    """What 100,000 volumes like this one take."""
    core_hours = PROJECTED / row["volumes/h/core"]
    terabytes = PROJECTED * row["MB stored"] / 1e6
    return {"like": row["CT"], "volumes": PROJECTED, "core hours": core_hours, "days on 32 cores": core_hours / 32 / 24,
            "terabytes": terabytes}  # fmt: skip


def main() -> int:
    default = Path(os.environ.get("SSL3D_DATA", Path(__file__).parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=default, help="folder with real CTs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fast", action="store_true", help="without scipy and SimpleITK, which take a minute")
    parser.add_argument("--quick", action="store_true", help="a quarter of the slices, two repeats, two files")
    parser.add_argument("--check", action="store_true", help="exit 1 when the goals are missed")
    o = parser.parse_args()
    repeats, slices = (2, 50) if o.quick else (o.repeats, 200)
    threadpool_limits(1)  # as in the workers of a conversion
    with tempfile.TemporaryDirectory() as temporary:
        files = ct_files(o.data)[: 2 if o.quick else None] or [make_ct(Path(temporary), (slices, 512, 512))]
        volume = hounsfield(files[0], (slices, 512, 512))
        rows, of_trilinear = bench_resampling(volume, repeats, o.fast)
        difference = largest_difference(volume[:40, 128:320, 128:320])
        scan = Scan(volume.transpose(2, 1, 0)[None], np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0]))
        built = build("ct", source_of(files[0]), scan, None, "iso1", "ct")
        del volume, scan
        writing, of_compression = bench_writing(built, repeats)
        del built
        converting = bench_conversion(files, max(1, repeats // 2))
    met = max(of_trilinear.values()) <= MAX_OF_TRILINEAR and difference <= MAX_HU
    met = met and of_compression <= MAX_OF_COMPRESSION
    largest = converting[0]
    more = {
        "Writing the resampled volume": writing,
        "From a file into a store, one core, 1 mm (seconds)": converting,
        f"Projection to {PROJECTED:,} volumes": [projection(largest)],
    }
    details = {
        "voxels_from": files[0].name, "slices": slices, "repeats": repeats, "of_trilinear": of_trilinear,
        "of_compression": of_compression, "largest_difference_hu": difference,
        "goals": {"of trilinear": MAX_OF_TRILINEAR, "HU": MAX_HU, "of compression": MAX_OF_COMPRESSION, "met": met},
    }  # fmt: skip
    title = f"Resampling a 512x512x{slices} CT ({files[0].name}) from 0.7x0.7x1.5 mm to 1 mm"
    save("bench_convert", title, rows, details, o.out, more)
    print(f"largest difference from scipy order 3 in the body: {difference:.3f} HU")
    return 1 if o.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
