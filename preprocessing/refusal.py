"""Why a scan is not converted: a reason code, fixed here, and one sentence about the scan at hand."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "bad_affine": "the header's affine is not finite or not invertible",
    "channel_mismatch": "the channels of a case do not lie on one grid",
    "colour": "colour images have no physical intensity",
    "constant": "all voxels hold one value",
    "duplicate": "the same voxels were converted from another file",
    "empty_file": "the file has no bytes",
    "failed": "the conversion failed on this scan",
    "label_affine_mismatch": "the label lies elsewhere than its image",
    "label_not_integer": "the label holds fractions or negative values",
    "label_shape_mismatch": "the label and its image differ in shape",
    "label_unreadable": "the label could not be read",
    "missing_channel": "a channel's file is missing",
    "missing_decoder": "no decoder for the compression is installed",
    "missing_file": "the data set names a file that is not there",
    "missing_slices": "slices inside the stack are missing",
    "mixed_orientation": "the slices of the series are not parallel",
    "mixed_size": "the slices of the series differ in size",
    "mosaic": "the slices are packed as tiles of one picture",
    "no_geometry": "positions or spacings of the slices are not stated",
    "not_finite": "no voxel holds a finite value",
    "repeated_positions": "several slices lie at one position",
    "too_few_slices": "a volume needs at least 3 slices",
    "too_large": "the volume needs more memory than one scan may take",
    "timed_out": "the time that one file may take ran out",
    "truncated": "the file ends before its data does",
    "uneven_spacing": "the slices are not evenly spaced",
    "unreadable": "the file could not be read as an image",
    "unsupported_dimensions": "the array is not a volume or a series of volumes",
    "worker_died": "the process that read it died",
}


class Refusal(Exception):  # not an error of the program: the scan is turned away, the run goes on
    """A scan that cannot be converted. `reason` is a key of REASONS, `detail` one sentence without paths."""

    def __init__(self, reason: str, detail: str = "") -> None:
        assert reason in REASONS, reason
        self.reason = reason
        self.detail = detail or REASONS[reason]
        super().__init__(f"{self.reason}: {self.detail}")

    def __reduce__(self) -> tuple[type[Refusal], tuple[str, str]]:
        """Pickles by its two arguments: refusals cross process boundaries."""
        return type(self), (self.reason, self.detail)
