"""ssl3d: self-supervised pre-training for 3D medical images.

    import ssl3d
    ssl3d.convert("/data/scans", "my.zarr")
    run = ssl3d.train("mae_resenc_s", {"data.store": "my.zarr", "run.dir": "runs/mae"})
    ssl3d.evaluate(run, "mine.yaml", "eval")
    ssl3d.export(run, "nnunet", "weights")

The verbs of the command line. Each imports what it needs when it is called, so importing this takes no torch.
"""

__version__ = "0.1.0"  # setup.cfg reads it here, and a release's tag is v and this (docs/release.md)

# ssl3d.train and ssl3d.export are also the names of modules. Python binds a module to its package once, when it is
# loaded first: here, before the functions take the names. So they stay functions, whatever is imported later.
from ssl3d.api import convert, evaluate
from ssl3d.export import export
from ssl3d.train import train

__all__ = ["__version__", "convert", "evaluate", "export", "train"]
