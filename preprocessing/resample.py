"""Separable resampling of images: cubic spline interpolation, low-passed on the axes that shrink.

One linear operator an axis. Its kernel is the cardinal cubic spline (Unser, "Splines: a perfect fit for signal and
image processing", 1999): exactly what a prefiltered order-3 B-spline interpolates with. On an axis that shrinks by
s > 1 the kernel is stretched by s, which moves its cut-off to the new grid's Nyquist frequency (1.2 % pass at 1.5 times
that frequency, less beyond), so no alias is left; an axis that grows is interpolated without blur. Beyond the edge the
signal is mirrored about the face of the last voxel.

An operator is banded, so it is applied as small dense tiles: 16 outputs and the inputs that they see, one matrix
product each. The volume streams through in blocks of planes: beside input and output only a few tens of planes are
held. Tiles and blocks depend on the grid alone and every product runs on one thread, so the number of threads changes
no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import numpy as np
from scipy import sparse
from threadpoolctl import ThreadpoolController

from preprocessing.geometry import AxisGrid

_POLE = np.sqrt(3.0) - 2.0  # of the cubic B-spline's inverse filter
_RADIUS = 10  # samples; the kernel has decayed to |pole|^10 = 2e-6 there
_TILE = 16  # outputs a product: more would multiply more zeros, fewer would leave the product's kernels idle
_BLOCK = 4  # tiles along z that share one window of planes
_PIECE = 1 << 14  # voxels of a plane in one product along z: a tile's inputs stay in the cache


def _cubic_b_spline(x: np.ndarray) -> np.ndarray:
    """Centred cubic B-spline."""
    x = np.abs(x)
    near = 2.0 / 3.0 - x**2 + x**3 / 2.0
    far = np.clip(2.0 - x, 0.0, None) ** 3 / 6.0
    return np.where(x < 1.0, near, far)


def cardinal_cubic(x: np.ndarray) -> np.ndarray:
    """Cardinal cubic spline: 1 at 0, 0 at every other integer; cut off at 10 samples."""
    total = np.zeros_like(x, dtype=np.float64)
    gain = -6.0 * _POLE / (1.0 - _POLE**2)
    for k in range(-_RADIUS - 2, _RADIUS + 3):
        total += gain * _POLE ** abs(k) * _cubic_b_spline(x - k)
    return np.where(np.abs(x) <= _RADIUS, total, 0.0)


def triangle(x: np.ndarray) -> np.ndarray:
    """The linear interpolation kernel."""
    return np.clip(1.0 - np.abs(x), 0.0, None)


def operator(grid: AxisGrid, kernel: str = "cubic") -> sparse.csr_array:
    """(n, n_in) float32 matrix that resamples one axis; rows sum to 1. `kernel`: "cubic" or "linear"."""
    function, radius = {"cubic": (cardinal_cubic, _RADIUS), "linear": (triangle, 1)}[kernel]
    stretch = max(1.0, grid.step)
    centres = grid.start + grid.step * np.arange(grid.n)
    reach = int(np.ceil(radius * stretch)) + 1
    taps = np.floor(centres).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)[None]
    weights = function((taps - centres[:, None]) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    period = np.mod(taps, 2 * grid.n_in)
    folded = np.where(period < grid.n_in, period, 2 * grid.n_in - 1 - period)
    kept = np.abs(weights) > 1e-7
    rows = np.broadcast_to(np.arange(grid.n)[:, None], taps.shape)[kept]
    matrix = sparse.coo_array((weights[kept], (rows, folded[kept])), shape=(grid.n, grid.n_in))
    return matrix.tocsr().astype(np.float32)


def resample(
    volume: np.ndarray,
    axes: Sequence[AxisGrid],
    kernel: str = "cubic",
    *,
    hidden: np.ndarray | None = None,
    fill: float = 0.0,
    threads: int = 1,
) -> np.ndarray:
    """(Z, Y, X) of any real dtype -> the grid of `axes`, float32.

    `hidden` (Z, Y, X) bool: voxels that count as `fill`, whatever they hold (NaN too); the volume is not copied for it.
    """
    return apply_operators(volume, _operators(axes, kernel), hidden=hidden, fill=fill, threads=threads)


def resample_mask(mask: np.ndarray, axes: Sequence[AxisGrid], *, threads: int = 1) -> np.ndarray:
    """(Z, Y, X) bool -> the grid of `axes`: true where linear interpolation of the mask gives one half or more."""
    operators = _operators(axes, "linear")
    out = np.empty(_shape_after(mask.shape, operators), bool)
    share = np.empty((_BLOCK * _TILE, *out.shape[1:]), np.float32)
    with _Pass(mask, operators, threads=threads) as work:
        for rows in work.blocks(lambda rows: share[: rows.stop - rows.start]):
            np.greater_equal(share[: rows.stop - rows.start], 0.5, out=out[rows])
    return out


def apply_operators(
    volume: np.ndarray,
    operators: Sequence[sparse.csr_array | None],
    *,
    hidden: np.ndarray | None = None,
    fill: float = 0.0,
    threads: int = 1,
) -> np.ndarray:
    """Apply one operator an axis (None leaves the axis alone) to (Z, Y, X); float32."""
    out = np.empty(_shape_after(volume.shape, operators), np.float32)
    with _Pass(volume, operators, hidden, fill, threads) as work:
        for _ in work.blocks(lambda rows: out[rows]):
            pass
    return out


def _operators(axes: Sequence[AxisGrid], kernel: str) -> list[sparse.csr_array | None]:
    return [None if grid.unchanged else operator(grid, kernel) for grid in axes]


def _shape_after(shape: Sequence[int], operators: Sequence[sparse.csr_array | None]) -> tuple[int, int, int]:
    z, y, x = (int(n) if m is None else int(m.shape[0]) for n, m in zip(shape, operators))
    return z, y, x


@dataclass(frozen=True)
class _Tile:
    """Outputs `rows` = `weights` (rows, taps) float32 times inputs `taps`."""

    rows: slice
    taps: slice
    weights: np.ndarray


@dataclass(frozen=True)
class _PlaneStep:
    """An operator along "y" or "x" of a plane (Y, X)."""

    along: str
    tiles: list[_Tile]

    def apply(self, source: np.ndarray, out: np.ndarray) -> None:
        for tile in self.tiles:
            if self.along == "y":
                np.matmul(tile.weights, source[tile.taps], out=out[tile.rows])
            else:
                np.matmul(source[:, tile.taps], tile.weights.T, out=out[:, tile.rows])


def _tiles(matrix: sparse.csr_array) -> list[_Tile]:
    """An operator in dense pieces of 16 outputs."""
    tiles = []
    for first in range(0, matrix.shape[0], _TILE):
        last = min(first + _TILE, matrix.shape[0])
        span = slice(matrix.indptr[first], matrix.indptr[last])
        taps = matrix.indices[span]
        low, high = (int(taps.min()), int(taps.max()) + 1) if taps.size else (0, 1)
        weights = np.zeros((last - first, high - low), np.float32)
        rows = np.repeat(np.arange(last - first), np.diff(matrix.indptr[first : last + 1]))
        weights[rows, taps - low] = matrix.data[span]
        tiles.append(_Tile(slice(first, last), slice(low, high), weights))
    return tiles


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """The numerical libraries of this process, looked for once: numpy's is loaded before this module."""
    return ThreadpoolController()


class _Pass:
    """One volume on its way through three operators. Use as a context: it holds the threads."""

    def __init__(
        self,
        volume: np.ndarray,
        operators: Sequence[sparse.csr_array | None],
        hidden: np.ndarray | None = None,
        fill: float = 0.0,
        threads: int = 1,
    ) -> None:
        self.volume, self.hidden, self.fill, self.threads = volume, hidden, np.float32(fill), threads
        self.shape = _shape_after(volume.shape, operators)
        along_z, *in_plane = operators
        self.z_tiles = _tiles(sparse.eye_array(len(volume), format="csr") if along_z is None else along_z)
        # What shrinks most goes first, so that the rest is done on fewer voxels.
        steps = [(m.shape[0] / m.shape[1], axis, m) for axis, m in zip("yx", in_plane) if m is not None]
        steps.sort(key=lambda step: step[0])
        self.in_plane = [_PlaneStep(axis, _tiles(m)) for _, axis, m in steps]
        growth = 1.0 if along_z is None else along_z.shape[0] / along_z.shape[1]
        self.planes_first = along_z is None or math.prod(step[0] for step in steps) <= growth
        self._stack = ExitStack()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> _Pass:
        self._stack.enter_context(_blas().limit(limits=1, user_api="blas"))
        if self.threads > 1:
            self._pool = self._stack.enter_context(ThreadPoolExecutor(self.threads))
        return self

    def __exit__(self, *details: object) -> None:
        self._stack.close()

    def blocks(self, place: Callable[[slice], np.ndarray]) -> Iterator[slice]:
        """Fill `place(rows)` (rows, Y, X) float32, block by block of output planes; yields the rows just filled."""
        return self._planes_first(place) if self.planes_first else self._z_first(place)

    def _planes_first(self, place: Callable[[slice], np.ndarray]) -> Iterator[slice]:
        """y and x of each input plane, once; then z, over a window of such planes that slides along."""
        blocks = [self.z_tiles[k : k + _BLOCK] for k in range(0, len(self.z_tiles), _BLOCK)]
        lows = np.minimum.accumulate([min(t.taps.start for t in block) for block in blocks][::-1])[::-1]
        highs = np.maximum.accumulate([max(t.taps.stop for t in block) for block in blocks])
        lows[1:] = np.minimum(lows[1:], highs[:-1])  # planes between two windows are made too: they are few
        window = np.empty((int((highs - lows).max()), *self.shape[1:]), np.float32)
        held_from = held_to = int(lows[0])
        for block, low, high in zip(blocks, lows.tolist(), highs.tolist()):
            kept = held_to - low
            window[:kept] = window[low - held_from : held_to - held_from]
            self._share(high - held_to, partial(self._load_planes, held_to, window[kept : high - low]))
            held_from, held_to = low, high
            rows = slice(block[0].rows.start, block[-1].rows.stop)
            out = place(rows).reshape(rows.stop - rows.start, -1)
            pieces = -(-out.shape[1] // _PIECE)
            self._share(pieces, partial(_along_z, block, window.reshape(len(window), -1), low, out))
            yield rows

    def _load_planes(self, first: int, out: np.ndarray, part: range) -> None:
        """Input planes first + part, resampled along y and x, into out[part]."""
        source = np.empty(self.volume.shape[1:], np.float32)
        halfway = self._halfway()
        for k in part:
            self._load(slice(first + k, first + k + 1), slice(None), source[None])
            self._in_plane(source, halfway, out[k])

    def _z_first(self, place: Callable[[slice], np.ndarray]) -> Iterator[slice]:
        """z of a tile's output planes, from the input planes that it sees; then y and x of each of them."""
        _, y, x = self.volume.shape
        in_place = not self.in_plane
        middle = np.empty((0 if in_place else _TILE, y, x), np.float32)
        lines = min(y, max(1, _PIECE // x))
        for tile in self.z_tiles:
            out = place(tile.rows)
            target = out if in_place else middle[: len(out)]
            self._share(-(-y // lines), partial(self._tile_along_z, tile, lines, target))
            if not in_place:
                self._share(len(out), partial(self._finish_planes, target, out))
            yield tile.rows

    def _tile_along_z(self, tile: _Tile, lines: int, out: np.ndarray, part: range) -> None:
        """Pieces `part`, of `lines` lines each, of a tile's output planes (rows, Y, X)."""
        _, y, x = self.volume.shape
        source = np.empty((tile.weights.shape[1], lines, x), np.float32)
        for piece in part:
            span = slice(piece * lines, min((piece + 1) * lines, y))
            n = (span.stop - span.start) * x
            seen = source.reshape(len(source), -1)[:, :n]
            self._load(tile.taps, span, seen.reshape(len(seen), -1, x))
            first = piece * lines * x
            np.matmul(tile.weights, seen, out=out.reshape(len(out), -1)[:, first : first + n])

    def _finish_planes(self, source: np.ndarray, out: np.ndarray, part: range) -> None:
        """Planes `part` of source (n, Y, X), resampled along y and x."""
        halfway = self._halfway()
        for k in part:
            self._in_plane(source[k], halfway, out[k])

    def _load(self, planes: slice, lines: slice, out: np.ndarray) -> None:
        """A part of the volume as float32, hidden voxels filled."""
        np.copyto(out, self.volume[planes, lines], casting="unsafe")
        if self.hidden is not None:
            np.copyto(out, self.fill, where=self.hidden[planes, lines])

    def _halfway(self) -> np.ndarray:
        """Room for a plane after the first of two axes."""
        y, x = self.volume.shape[1:]
        first = [step.along for step in self.in_plane[:1]]
        return np.empty((self.shape[1] if "y" in first else y, self.shape[2] if "x" in first else x), np.float32)

    def _in_plane(self, source: np.ndarray, halfway: np.ndarray, out: np.ndarray) -> None:
        """(Y, X) -> `out`, along y and x; the axis that shrinks more goes first."""
        if not self.in_plane:
            out[...] = source
        elif len(self.in_plane) == 1:
            self.in_plane[0].apply(source, out)
        else:
            self.in_plane[0].apply(source, halfway)
            self.in_plane[1].apply(halfway, out)

    def _share(self, count: int, work: Callable[[range], None]) -> None:
        """work(range(count)), in as many parts as there are threads; what a part computes does not depend on them."""
        if self._pool is None or count < 2:
            work(range(count))
            return
        bounds = np.linspace(0, count, min(self.threads, count) + 1).astype(int).tolist()
        list(self._pool.map(work, [range(a, b) for a, b in pairwise(bounds)]))


def _along_z(tiles: Sequence[_Tile], window: np.ndarray, low: int, out: np.ndarray, part: range) -> None:
    """Pieces `part` of a block's output planes (rows, Y * X), from planes `low` on in window (planes, Y * X)."""
    first = tiles[0].rows.start
    for piece in part:
        span = slice(piece * _PIECE, (piece + 1) * _PIECE)
        for tile in tiles:
            seen = window[tile.taps.start - low : tile.taps.stop - low, span]
            np.matmul(tile.weights, seen, out=out[tile.rows.start - first : tile.rows.stop - first, span])
