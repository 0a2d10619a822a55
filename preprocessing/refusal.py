"""Why a scan is not converted: a reason code, fixed here, and one sentence about the scan at hand."""

from __future__ import annotations

from ssl3d.terminal import printable

REASONS: dict[str, str] = {
    "affine_not_finite": "the header's affine holds values that are not finite",
    "affine_singular": "the header's affine cannot be inverted: two axes coincide or a voxel size is zero",
    "all_zero": "all voxels are zero",
    "analyze": "Analyze files do not state where the patient's left is: make NIfTI of them with the program that knows",
    "archive_bomb": "the archive would unpack to far more than an archive of scans holds",
    "archive_damaged": "the archive is damaged or cut short",
    "archive_encrypted": "the archive is encrypted: unpack it yourself",
    "archive_link": "the archive holds a link that leads out of it",
    "archive_too_large": "the archive does not fit on the disk beside the store",
    "archive_unsafe": "the archive holds a name that leads out of it",
    "bad_checksum": "the compressed data does not match its checksum: the file was damaged, copy it again",
    "bad_dimensions": "an axis has no voxels or a negative number of them",
    "bad_offset": "the header places the voxels where they cannot be",
    "bad_rescale": "the header does not say how stored values become physical ones",
    "bad_row": "the row of the list cannot be used",
    "bad_scaling": "the slope and intercept of the values are not finite",
    "bad_spacing": "a voxel size is zero, negative or not a number",
    "blank_file": "all bytes at the start are zero: a download that was never filled",
    "burned_in": "the header says that text is burned into the pictures: it may name the patient",
    "byte_order": "the bytes of header or voxels are in the wrong order",
    "channel_mismatch": "the channels of a case do not lie on one grid",
    "colour": "colour images have no physical intensity",
    "complex": "complex values: save the magnitude",
    "constant": "all voxels hold one value",
    "contours": "contours (RT Structure Set) are not read: make masks of them and give these by --labels",
    "corrupt_header": "the header contradicts itself",
    "corrupt_stream": "the compressed data is damaged",
    "dangling_link": "the link leads to a file that is not there",
    "derived": "derived pictures are no scan: projections, renderings, a few reformatted slices, other quantities",
    "duplicate": "the same voxels were converted from another file",
    "empty_file": "the file has no bytes",
    "failed": "the conversion failed on this scan",
    "git_annex_pointer": "a pointer of git-annex, not the file: fetch it with git annex get or datalad get",
    "git_lfs_pointer": "a pointer of git-lfs, not the file: fetch it with git lfs pull",
    "implausible_position": "the header places the scan more than 100 m from its origin",
    "implausible_spacing": "voxels below 0.01 mm or above 50 mm are no scan's",
    "implausible_values": "values that no scan holds: the file was damaged, or its type is stated wrongly",
    "impossible_size": "the header speaks of far more voxels than the file can hold",
    "inverted": "MONOCHROME1: it cannot be known whether the values are inverted or only their display",
    "json_reply": "a server's JSON reply, not an image: the download failed",
    "label_affine_mismatch": "the label lies elsewhere than its image",
    "label_not_integer": "the label holds fractions or negative values",
    "label_overlap": "segments of the label overlap: one voxel can have one class only",
    "label_shape_mismatch": "the label and its image differ in shape",
    "label_unreadable": "the label could not be read",
    "label_without_image": "the image series that the segmentation belongs to is not among the sources",
    "listed_twice": "the list names the scan twice",
    "localiser": "a localiser or scout is no scan",
    "looks_like_labels": "it is a segmentation, not an image: few values in flat regions",
    "missing_channel": "a channel's file is missing",
    "missing_contrast": "a contrast of the case is missing",
    "missing_data": "the file with the voxels is not beside the header",
    "missing_decoder": "no decoder for the compression is installed",
    "missing_file": "the file is not there",
    "missing_header": "the header is not beside the file with the voxels",
    "missing_library": "a library that reads this format is not installed",
    "missing_slices": "slices inside the stack are missing",
    "mixed_orientation": "the slices of the series are not parallel",
    "mixed_size": "the slices of the series differ in size",
    "modality_refused": "the scan is neither CT nor MR",
    "mosaic": "the slices are packed as tiles of one picture",
    "mostly_not_finite": "more than half of the voxels are not finite",
    "no_geometry": "positions or spacings of the slices are not stated",
    "no_orientation": "the header does not say how the voxels lie in the patient",
    "no_permission": "this user may not read the file",
    "not_a_file": "it is a folder, a device or a pipe under a scan's name",
    "not_a_scan": "the data set says that it is no scan of anatomy",
    "not_finite": "no voxel holds a finite value",
    "not_in_layout": "the file is neither an image nor a label of the data set it lies in",
    "outside_folder": "the header names a file outside its own folder",
    "plain_text": "a text, not an image",
    "read_error": "the disk or network failed while the file was read",
    "repeated_positions": "several slices lie at one position",
    "scattered_slices": "the slices do not lie on a line",
    "screenshot": "a screenshot or secondary capture is no scan",
    "surplus_bytes": "more bytes follow the voxels than the header knows of",
    "timed_out": "the time that one file may take ran out",
    "too_few_slices": "a volume needs at least 3 slices",
    "too_large": "the volume needs more memory than one scan may take",
    "truncated": "the file ends before its data does",
    "uneven_spacing": "the slices are not evenly spaced",
    "unreadable": "the file could not be read as an image",
    "unsupported_dimensions": "the array is not a volume or a series of volumes",
    "unsupported_encoding": "the voxels are encoded in a way that is not read",
    "unsupported_type": "the voxels are of a type that is not read",
    "vector_voxels": "each voxel holds several components",
    "web_page": "a web page, not an image: the download failed or needs a login",
    "worker_died": "the process that read it died",
    "wrong_format": "the content is in another format than the name says",
}


class Refusal(Exception):  # not an error of the program: the scan is turned away, the run goes on
    """A scan that cannot be converted. `reason` is a key of REASONS, `detail` one sentence without paths."""

    def __init__(self, reason: str, detail: str = "") -> None:
        assert reason in REASONS, reason
        self.reason = reason
        self.detail = printable(detail) or REASONS[reason]
        super().__init__(f"{self.reason}: {self.detail}")

    def __reduce__(self) -> tuple[type[Refusal], tuple[str, str]]:
        """Pickles by its two arguments: refusals cross process boundaries."""
        return type(self), (self.reason, self.detail)
