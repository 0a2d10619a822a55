"""An evaluation on a GPU, pretended here, gives the scores of the CPU: nothing of it stays behind on either."""

from __future__ import annotations

import pandas as pd
import pytest
from pathology_store import volume_suite, write_data
from shapes_store import suite_values, write_run

import downstream
from downstream.results import read_results
from ssl3d.testing.pretended_gpu import PretendedGPU

PATCH = [16, 32, 24]


def scores(runs, values, out) -> pd.DataFrame:
    downstream.evaluate(runs, values, out)
    return read_results(out)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["segmentation", "volumes"])
def test_scores_are_those_of_the_cpu(target, tmp_path, labelled_store, split_file):
    run = write_run(tmp_path / "runs" / "mae", 1)
    if target == "volumes":
        values = volume_suite(*write_data(tmp_path))
    else:
        values = suite_values(labelled_store, split_file, precision="32-true")
        few = {"n_labelled": [1], "seeds": 1, "patch_size": PATCH, "voxels_per_class": 50}
        values["measures"]["probe"] |= {"n_labelled": [1], "seeds": 1}
        values["measures"]["finetune"] |= {"n_labelled": [1], "seeds": 1, "score_at": [1]}
        values["measures"]["knn"] = {"_target_": "downstream.knn.Knn", **few}
        values["measures"]["retrieve"] = {"_target_": "downstream.retrieval.Retrieval", **few}
    here = scores([run], values, tmp_path / "here")
    with PretendedGPU() as gpu:
        there = scores([run], values, tmp_path / "there")
    assert gpu.waits, "it was computed there"
    pd.testing.assert_frame_equal(here, there)
