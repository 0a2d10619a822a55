"""The ssl3d command: verbs -> functions; nothing else. Exit 0 done, 1 failed, 2 bad usage."""

from __future__ import annotations

import argparse
import importlib.util
import os
import select
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from ssl3d import __version__, api, export, train
from ssl3d.known_warnings import hide_known_warnings, show_known_warnings
from ssl3d.signals import Interrupted, interrupted_by_signals


class UsageError(Exception):
    """What was typed is wrong; the message is one sentence."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence instead of printing the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; a user's mistake ends in one plain sentence on stderr, `--debug` shows the traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    (show_known_warnings if debug else hide_known_warnings)()
    try:
        options = _parse([a for a in arguments if a != "--debug"])
        code = options.function(options) or 0
        sys.stdout.flush()  # here, where a reader that left is noticed
        return code
    except KeyboardInterrupt as stop:
        if isinstance(stop, Interrupted):  # of several ranks one has something to say
            return _fail(str(stop), stop.exit_code, debug) if str(stop) else stop.exit_code
        return _fail(str(stop) or "stopped by Ctrl-C; the same command goes on where it can", 1, debug)
    except BrokenPipeError as error:
        return 0 if _reader_left() else _explain(error, debug)
    except Exception as error:  # noqa: BLE001 - the one place where errors become sentences and exit codes
        return _explain(error, debug)


def _reader_left() -> bool:
    """Whether who read our output (head, less) closed it, because it has seen enough."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)  # asked for nothing, it tells errors alone
    left = any(event & select.POLLERR for _, event in poll.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # Python flushes once more at its end
    return left


def _explain(error: Exception, debug: bool) -> int:
    if isinstance(error, (UsageError, api.HiddenPackageError)):
        return _fail(str(error), 2, debug)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return _fail(f"{error.filename}: {error.strerror}", 1, debug)
    if type(error).__name__ == "ConfigError":
        return _fail(str(error), 2, debug)
    if isinstance(error, (ValueError, OSError)) or type(error).__name__ == "TrainingStopped":
        return _fail(str(error), 1, debug)
    traceback.print_exc()
    return _fail(f"this is a fault in ssl3d {__version__}, not in what you typed: please report it", 1, False)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    for line in message.splitlines() or ["failed"]:
        sys.stderr.write(f"ssl3d: {line}\n")
    return code


def _convert(o: argparse.Namespace) -> int:
    report = api.convert(
        o.paths[:-1],
        o.paths[-1],
        spacing=o.spacing,
        modality=o.modality,
        labels=o.labels,
        targets=o.targets,
        subject_key=o.subject_key,
        workers=o.workers,
        scheduler=o.scheduler,
        allow_gaps=o.allow_gaps,
        timeout=o.timeout,
        memory=o.memory,
        dry_run=o.dry_run,
    )
    return report.exit_code


def _inspect(o: argparse.Namespace) -> int:
    if not o.verify:
        sys.stdout.write(api.neighbour("preprocessing").inspect(o.store, html=o.html).rstrip() + "\n")
        return 0
    if o.html:
        raise UsageError("--verify and --html are two things: ask for one after the other")
    report = api.neighbour("preprocessing").verify(o.store)
    sys.stdout.write(report.text + "\n")
    return report.exit_code


def _train(o: argparse.Namespace) -> int:
    with interrupted_by_signals():  # also while it starts
        run = train(o.recipe, o.overrides)
    sys.stdout.write(f"{run}\n")
    return 0


def _check(o: argparse.Namespace) -> int:
    from ssl3d.check import check

    sys.stdout.write(check(o.recipe, o.overrides, o.gpu) + "\n")
    return 0


def _recipes(o: argparse.Namespace) -> int:
    from ssl3d import config

    if o.name:
        sys.stdout.write(config.find(o.name).read_text(encoding="utf-8"))
        return 0
    for title, names in (("", config.names()), ("\nsuites, for `ssl3d evaluate --suite`:\n", config.suites())):
        sys.stdout.write(title)
        for name in names:
            sys.stdout.write(f"{name:40} {config.about(name)}".rstrip() + "\n")
    return 0


def _copy(o: argparse.Namespace) -> int:
    from ssl3d import config

    beside = config.RECIPES / o.name  # a job script (cluster/slurm.sh) is no recipe, and is edited as well
    source, target = beside if beside.suffix == ".sh" and beside.is_file() else config.find(o.name), Path(o.file)
    if target.exists():
        raise UsageError(f"'{o.file}' exists already: choose another name")
    shutil.copyfile(source, target)
    sys.stdout.write(f"{target}\n")
    return 0


def _sweep(o: argparse.Namespace) -> int:
    if importlib.util.find_spec("optuna") is None:
        raise UsageError("ssl3d sweep needs optuna: pip install 'ssl3d[sweep]'")
    out = Path(o.out) if o.out else Path("runs", "sweeps", Path(o.file).stem)
    with interrupted_by_signals():  # also while it starts
        from ssl3d.sweep import run_local

        table = run_local(o.file, o.local, out, o.overrides, o.at_once)
    sys.stdout.write(f"{table}\n")
    return 0


def _export(o: argparse.Namespace) -> int:
    report = export(
        o.run,
        o.to,
        o.out,
        plans=o.plans,
        dataset_json=o.dataset_json,
        in_channels=o.in_channels,
        architecture=o.architecture,
        minimum=o.minimum,
        inflate=o.inflate,
        cast=o.cast,
        trust=o.trust,
        strict=o.strict,
    )
    sys.stdout.write(report.text().rstrip() + "\n")
    return 0


def _evaluate(o: argparse.Namespace) -> int:
    overrides = [r for r in o.runs if "=" in r and not Path(r).exists()]
    runs = [r for r in o.runs if r not in overrides]
    api.evaluate(runs, o.suite, o.out, overrides, o.plan_only)
    return 0


def _report(o: argparse.Namespace) -> int:
    for path in api.neighbour("downstream").redraw([Path(d) for d in o.dirs]):
        sys.stdout.write(f"{path}\n")
    return 0


def _doctor(o: argparse.Namespace) -> int:
    from ssl3d import doctor

    findings = doctor.examine(o.store, o.dir)
    sys.stdout.write((doctor.as_json(findings) if o.json else doctor.as_text(findings)) + "\n")
    return int(any(finding.state == doctor.State.WRONG for finding in findings))


def _quickstart(o: argparse.Namespace) -> int:
    api.neighbour("downstream").quickstart(Path(o.out), None if o.data is None else Path(o.data))
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    verbs = _verbs()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in verbs:
        from difflib import get_close_matches

        close = get_close_matches(arguments[0], verbs, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(verbs)}"
        raise UsageError(f"there is no verb '{arguments[0]}'; {hint}")
    parser = _Parser(prog="ssl3d", description="Self-supervised pre-training for 3D medical images.")
    parser.add_argument("--version", action="version", version=f"ssl3d {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    children = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for name, (function, about, example, add) in verbs.items():
        child = children.add_parser(
            name,
            help=about,
            usage="ssl3d convert [options] SOURCE... STORE" if name == "convert" else None,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add(child.add_argument)
        child.set_defaults(function=function)
    options, rest = parser.parse_known_args(arguments)
    if rest:  # key=value after a flag: argparse does not take positionals in two places
        overrides = options.overrides if hasattr(options, "overrides") else getattr(options, "runs", None)
        unknown = [r for r in rest if r.startswith("-") or "=" not in r]
        if unknown or overrides is None:
            raise UsageError(f"unknown argument '{(unknown or rest)[0]}' (ssl3d {options.verb} --help)")
        overrides.extend(rest)
    if options.verb == "convert" and len(options.paths) < 2:
        raise UsageError("convert needs at least one SOURCE and the STORE to write (ssl3d convert --help)")
    return options


_CONVERT = """ssl3d convert /data/scans /data/my.zarr
         ssl3d convert Task04_Hippocampus export.zip list.csv /data/my.zarr --dry-run
         ssl3d convert /data/scans /data/my.zarr --scheduler tcp://node1:8786   (dask worker on every node)
         AWS_ENDPOINT_URL=https://s3.my.org ssl3d convert /data/scans s3://bucket/my.zarr"""
Add = Callable[..., argparse.Action]


def _verbs() -> dict[str, tuple[Callable[[argparse.Namespace], int], str, str, Callable[[Add], None]]]:
    """{verb: (function, what it does, example, its arguments)}."""

    def convert(add: Add) -> None:
        add("paths", nargs="+", metavar="SOURCE... STORE", help="what to read; the store to write, a folder or a URL")
        add("--spacing", default="iso1", help="iso1 (1 mm) | median | keep | z,y,x in mm (default iso1)")
        add("--modality", default="auto", choices=("auto", "ct", "mr", "pet", "other"))
        add("--labels", metavar="DIR", help="label files of the same names as the images")
        add("--targets", metavar="CSV", help="volume targets: a subject or file column, further columns numbers")
        add("--subject-key", metavar="FILE", help="key that names of patients are hashed with, made where there is none"
            " (default ssl3d/subject.key in the user's configuration folder)")  # fmt: skip
        add("--workers", type=int, metavar="N", help="processes (default: all cores, as far as the memory goes)")
        add("--scheduler", metavar="URL", help="a dask scheduler, tcp://host:port, whose workers see the same files")
        add("--allow-gaps", action="store_true", help="interpolate missing slices instead of refusing the series")
        add("--timeout", type=float, default=600.0, metavar="SECONDS", help="for one source (default 600)")
        add("--memory", type=float, metavar="GIB", help="ceiling for one scan in a worker (default: an equal share)")
        add("--dry-run", action="store_true", help="say what would be made of what, write nothing")

    def inspect(add: Add) -> None:
        add("store", metavar="STORE")
        add("--html", metavar="FILE", help="write a page: histograms, the worst volumes, refusals, duplicates")
        add("--verify", action="store_true", help="check every shard against its digest; 1 when one is damaged")

    def recipe(add: Add) -> None:
        add("recipe", metavar="RECIPE", help="a name (ssl3d recipes) or a YAML file")
        add("overrides", nargs="*", metavar="key=value", default=[])

    def check(add: Add) -> None:
        recipe(add)
        add("--gpu", metavar="NAME", help="does it fit, how long may it take: h200, h100, a100, l40s, 4090, ...")

    def recipes(add: Add) -> None:
        add("name", nargs="?", metavar="NAME", help="print this one")

    def copy(add: Add) -> None:
        add("name", metavar="NAME")
        add("file", metavar="FILE")

    def sweep(add: Add) -> None:
        add("file", metavar="FILE", help="a wandb sweep file, or the name of one below recipes/sweeps")
        add("overrides", nargs="*", metavar="key=value", default=[], help="for every run")
        add("--local", type=int, required=True, metavar="N", help="runs in all on this machine; a grid ends by itself")
        add("--out", metavar="DIR", help="default runs/sweeps/<name>; the same again goes on")
        add("--at-once", type=int, default=1, metavar="N", help="runs beside each other (default 1)")

    def export(add: Add) -> None:
        add("run", metavar="RUN|FILE")
        add("--to", required=True, metavar="TARGET", help="nnunet | nnssl | monai | safetensors | hub | ...")
        add("--out", required=True, metavar="DIR")
        add("--plans", metavar="FILE", help="your nnU-Net plans: the new configuration is added to it")
        add("--dataset-json", metavar="FILE", help="your nnU-Net dataset.json: says how many channels")
        add("--in-channels", type=int, metavar="N", help="image channels of your data")
        add("--architecture", choices=("own", "planned"), help="nnunet: the run's network in your plans, or theirs")
        add(
            "--minimum", type=float, metavar="SHARE", help="nnunet, FILE: how much of the encoder to fill (default 0.5)"
        )
        add("--strict", action="store_true", help="refuse anything that is not copied bit by bit")
        add("--inflate", choices=("mean", "centre", "rotation"), help="FILE: how 2D kernels become 3D (default mean)")
        add("--cast", action="store_true", help="FILE: convert weights of half or double precision to float32")
        add("--trust", action="store_true", help="FILE: run the code that a pickle asks for")

    def evaluate(add: Add) -> None:
        add("runs", nargs="*", metavar="RUN|FILE|key=value", default=[])
        add("--suite", required=True, metavar="FILE|NAME")
        add("--out", required=True, metavar="DIR")
        add("--plan-only", action="store_true", help="say cells and hours, write DIR/split.json, train nothing")

    def report(add: Add) -> None:
        add("dirs", nargs="+", metavar="DIR", help="evaluations or runs")

    def quickstart(add: Add) -> None:
        add("--out", default="runs/quickstart", metavar="DIR")
        add("--data", metavar="DIR", help="a labelled MSD folder in place of the synthetic anatomy")

    def doctor(add: Add) -> None:
        add("--store", metavar="PATH", help="where a store will be: is there room?")
        add("--dir", metavar="PATH", help="where runs will be: is there room?")
        add("--json", action="store_true", help="for programs")

    return {
        "convert": (_convert, "turn raw scans into a store; the same command again resumes", _CONVERT, convert),
        "inspect": (_inspect, "say what a store holds", "ssl3d inspect my.zarr --html my.html", inspect),
        "train": (_train, "pre-train a recipe; resumes", "ssl3d train mae_resenc_l data.store=my.zarr", recipe),
        "check": (_check, "complete and build a recipe without data", "ssl3d check mae_resenc_l --gpu a100", check),
        "recipes": (_recipes, "list recipes and suites, or print one", "ssl3d recipes mae_resenc_l", recipes),
        "copy": (_copy, "copy a recipe to edit it", "ssl3d copy mae_resenc_l mine.yaml", copy),
        "sweep": (_sweep, "run a wandb sweep file here, without a server; resumes",
                  "ssl3d sweep mae_grid --local 6", sweep),
        "export": (_export, "export weights", "ssl3d export runs/mae --to nnunet --out weights", export),
        "evaluate": (
            _evaluate,
            "score runs by how few labels they need, against scratch",
            "ssl3d evaluate runs/mae --suite hippocampus --out eval store=my.zarr",
            evaluate,
        ),
        "report": (_report, "redraw or compare evaluations and runs", "ssl3d report eval", report),
        "quickstart": (_quickstart, "the whole chain on synthetic anatomy, minutes on a CPU",
                       "ssl3d quickstart --out runs/quickstart", quickstart),
        "doctor": (_doctor, "say whether this machine is fit, and what to mend; 1 when something is wrong",
                   "ssl3d doctor --store /data/my.zarr --dir runs", doctor),
    }  # fmt: skip
