"""train(...): pre-train a recipe. The public door to ssl3d.loop, which is imported when something is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl3d.known_warnings import hide_known_warnings

if TYPE_CHECKING:
    from ssl3d.config import Overrides
    from ssl3d.observers.observer import Observer
    from ssl3d.recipe import Recipe


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Overrides = (), *, observers: Sequence[Observer] = ()
) -> Path:
    """Train a recipe to its last step and return the run's folder; the same call again resumes exactly.

    `recipe`: a name that `ssl3d recipes` lists, a YAML file, its content as a mapping, or a Recipe that is loaded
    already. `overrides`: {"data.store": "my.zarr", "run.dir": "runs/mae"}, or texts as the command line takes them,
    ["data.store=my.zarr"]. `observers`: more of them than the recipe asks for.

    On several devices each rank is a process that runs the caller's script from its beginning; the command line, which
    does nothing else, is the better start there.

    Raises ConfigError (a ValueError naming every wrong key), FileNotFoundError (no such recipe or store),
    TrainingStopped (the loss is not finite, the folder is in use or holds another run), DiskFull, and Interrupted, a
    KeyboardInterrupt, on SIGTERM and SIGUSR1: it saved, the same call goes on.
    """
    hide_known_warnings()
    from ssl3d.config import ConfigError, load
    from ssl3d.recipe import Recipe

    if not isinstance(recipe, Recipe):
        recipe = load(recipe, overrides)
    elif overrides:
        raise ConfigError(["overrides change a recipe while it is loaded, and this one is: give them to config.load"])
    from ssl3d import loop  # after the recipe was checked: torch takes seconds to load

    return loop.train(recipe, observers)
