"""Write the table of docs/costs.md anew: what `ssl3d check` counts for every shipped recipe. Nothing is trained.

python docs/make_costs.py            # names of recipes after it: those alone; --check compares instead, and ends with 1
                                     # where the page is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

from ssl3d import check, config

PAGE = Path(__file__).resolve().parent / "costs.md"
BEGIN, END = "<!-- counted: made by docs/make_costs.py -->\n", "<!-- /counted -->\n"
HEAD = """\
| recipe | parameters (encoder), M | input, voxels | regions a step | TFLOP a step | state, GiB | activations of a region, GiB | steps |
|---|---|---|---|---|---|---|---|
"""  # noqa: E501


def row(name: str) -> str:
    """One recipe, counted on shapes alone."""
    recipe = config.load(name, unset=("data.store",))
    objective = config.build_task(recipe, check._shapes(recipe))
    encoder = objective.backbone.encoder_parameter_names()
    total = sum(p.numel() for p in objective.parameters()) / 1e6
    inside = sum(p.numel() for n, p in objective.backbone.named_parameters() if n in encoder) / 1e6
    size = "x".join(map(str, objective.input_size))
    flops = check.step_flops(recipe, objective) / 1e12
    state = check.weight_bytes(recipe, objective) / check.GIB
    kept = check.activation_bytes(recipe, objective) / check.GIB
    return (
        f"| `{name}` | {total:.2f} ({inside:.2f}) | {size} | {recipe.data.batch_size} | {flops:.3g} | {state:.2f} "
        f"| {kept:.2f} | {recipe.run.steps:,} |\n"
    )


def names() -> list[str]:
    """The recipes that `ssl3d recipes` lists."""
    return config.names()


def rows() -> dict[str, str]:
    """{recipe: its row} as the page has them."""
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    return {line.split("`")[1]: line + "\n" for line in table.splitlines() if line.startswith("| `")}


def main(arguments: list[str]) -> int:
    """Write the page, all of it or the rows of the named recipes, or with --check compare it."""
    old = rows()
    chosen = [name for name in arguments if name != "--check"]
    kept = {name: line for name, line in old.items() if chosen and name not in chosen}
    made = {name: kept.get(name) or row(name) for name in names() if not chosen or name in {*kept, *chosen}}
    if "--check" in arguments:
        return int(made != old)
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(before + BEGIN + HEAD + "".join(made.values()) + END + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
