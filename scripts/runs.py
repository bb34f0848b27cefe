"""The runs at hand: `python scripts/runs.py list`, `show`, `diff`, `check`, `evaluate`, `rerun`, `compact`,
`export`, `release`, `engines`, `gc`, `pack`.

Torch is imported to evaluate, to rerun, to compact, to export, to release and to time only.
"""

from __future__ import annotations

import functools
import json
import math
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from results import ledger, number
from results.address import select
from results.collect import LOGGED, Collection, write_packed
from results.command import Arguments, collect_runs, remembered, say, show
from results.engines import FOLDER as ENGINES
from results.integrity import report
from results.plan import plan
from results.record import STATUSES, TIMES_FILE, Record
from results.render import ledger as text
from runner.compose import compose, groups
from runner.errors import Misuse, nearest
from runner.identity import Config
from runner.leftovers import SETTLED, Leftover, delete, leftovers, run_directories, wanted
from runner.records import spell, write_atomic, write_json
from runner.submission import FOLDER, TASKS, load
from runner.untrusted import printable

DAY_S = 86400.0


@remembered()
def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0; 1 when a number does not repeat or a run is refused; 2 for a misuse; 75 when interrupted."""
    try:
        options = _parser().parse_args(arguments)
        return options.command(options)
    except Misuse as misuse:
        say([str(misuse)])
        return 2


def _parser() -> Arguments:
    parser = Arguments("runs.py", description="List, show, compare, check, clean and pack runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(command: Callable[[Any], int], about: str, *runs: str, filters: bool = False) -> Arguments:
        name = command.__name__.strip("_")
        sub: Arguments = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(command=command)
        for run in runs:
            sub.add_argument(run, metavar=run.upper(), help=run_help)
        if filters:
            sub.add_argument("filters", nargs="*", metavar="FILTER", help="only runs whose path contains each of these")
        sub.add_argument("--runs", nargs="+", type=Path, metavar="DIR", help=runs_help)
        return sub

    run_help = "a run directory, a packed record, or the beginning of KEY/seedK"
    runs_help = "folders to search for runs (default: the runs root and results/logged)"
    listing = add(_list, "A table of runs.", filters=True)
    listing.add_argument("--status", metavar="S", help="only runs that are " + ", ".join(STATUSES))
    for sub in (
        listing,
        add(_show, "One run whole.", "run"),
        add(_diff, "Where two runs differ, and what came out of them.", "a", "b"),
    ):
        sub.add_argument("--json", action="store_true", help="print JSON")
        sub.add_from()
    checking = add(_check, "What is wrong with the records, and what their readers should know.", filters=True)
    checking.add_argument("--json", action="store_true", help="print JSON")
    checking.add_from()
    evaluating = add(_evaluate, "Evaluate a run's last checkpoint: does it give the recorded numbers?", "run")
    repeating = add(_rerun, "Repeat a run and compare it with its record, bit for bit.", "run")
    repeating.add_argument("--out", type=Path, metavar="DIR", help="a runs root for it (default: <runs>/rerun)")
    shrinking = add(_compact, "Leave a run's zero filters out: how much smaller and faster is its network?", "run")
    shrinking.add_argument("--batch", type=int, default=128, metavar="N", help="images at a time (default: 128)")
    shrinking.add_argument("--rounds", type=int, default=21, metavar="N", help="ratios to take (default: 21)")
    shrinking.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the run's)")
    shrinking.add_argument("--out", type=Path, metavar="FILE", help="the record (default: compact.json in the run)")
    exporting = add(_export, "Write a run's network as an ONNX model, its zeros kept, its outputs compared.", "run")
    exporting.add_argument("--images", type=int, default=256, metavar="N", help="test images to compare on (256)")
    exporting.add_argument("--out", type=Path, metavar="FILE", help="default: model.onnx in the run")
    releasing = add(_release, "A run's network as plain weights, program and ONNX, compared, with a model card.", "run")
    releasing.add_argument("--images", type=int, default=256, metavar="N", help="test images to compare on (256)")
    releasing.add_argument("--out", type=Path, metavar="DIR", help="default: release in the run")
    timing = add(_engines, "Time inference in engines of networks with zeros against dense ones, in turn.")
    timing.add_argument("run", metavar="RUN", nargs="?", help=run_help)
    timing.add_argument(
        "--untrained",
        nargs="+",
        metavar="TARGET",
        help="instead: never trained networks, pruned by magnitude: of tables' cells (addresses), or of overrides",
    )
    timing.add_argument("--engine", nargs="+", metavar="E", help="default: onnxruntime openvino deepsparse")
    timing.add_argument("--setting", nargs="+", metavar="BATCHxTHREADS", help="default: 1 and 64 images on all cores")
    timing.add_argument(
        "--openings", type=int, default=3, metavar="N", help="how often each network is opened anew (default: 3)"
    )
    timing.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="times to take of each while it is open (default: 5)"
    )
    timing.add_argument("--out", type=Path, metavar="FILE", help="the record (default: engines.json in the run)")
    for sub in (evaluating, repeating, shrinking, exporting, releasing, timing):
        sub.add_argument("--data", metavar="DIR", help="the data root (default: REGROW_DATA, else the run's)")
        sub.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: the run's")
    cleaning = add(_gc, "What runs leave behind and nothing needs. Summaries, metrics, configurations always stay.")
    cleaning.add_argument("--older-than", type=float, default=0.0, metavar="DAYS", help="leave younger runs alone")
    cleaning.add_argument("--yes", action="store_true", help="delete it; without this it is only listed")
    packing = add(_pack, "Keep finished runs as one small file each, to be committed.", filters=True)
    packing.add_argument("--out", type=Path, default=LOGGED, metavar="DIR", help="default: results/logged")
    packing.add_argument("--allow-dirty", action="store_true", help="also runs of uncommitted or unknown code")
    return parser


def _list(options: Any) -> int:
    if options.status is not None and options.status not in STATUSES:
        raise Misuse(f"There is no status {options.status!r}.{nearest(options.status, STATUSES)}")
    runs = collect_runs(options.runs, options.sources)
    rows = [ledger.row(record) for record in ledger.matching(runs, options.filters, options.status)]
    show(_json(rows) if options.json else text.listed(rows), end="")
    counts = Counter(row["status"] for row in rows)
    parts = [f"{counts[status]} {status}" for status in STATUSES if counts[status]]
    say([*runs.sentences(), f"{len(rows)} run(s){': ' * bool(parts)}{', '.join(parts)}."])
    return 0


def _show(options: Any) -> int:
    runs = collect_runs(options.runs, options.sources)
    record, problems = ledger.find(options.run, runs)
    run = ledger.whole(record, runs)
    show(_json(run) if options.json else text.whole(run), end="")
    say(f"Problem: {problem}" for problem in problems)
    return 0


def _diff(options: Any) -> int:
    runs = collect_runs(options.runs, options.sources)
    (a, problems), (b, more) = (ledger.find(name, runs) for name in (options.a, options.b))
    found = ledger.difference(a, b)
    show(_json(found) if options.json else text.difference(found), end="")
    say(f"Problem: {problem}" for problem in problems + more)
    return 0


def _check(options: Any) -> int:
    """Every finding in full; 1 when a number may be wrong or lost by one."""
    runs = collect_runs(options.runs, options.sources)
    findings = [each for each in report(runs) if all(part in each.path.as_posix() for part in options.filters)]
    counts = Counter(each.kind for each in findings)
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    total = f"{len(runs.runs)} run(s), {len(findings)} finding(s){': ' * bool(said)}{said}."
    if options.json:
        entries = [
            {"kind": each.kind, "grave": each.grave, "path": str(each.path), "what": each.sentence} for each in findings
        ]
        show(_json(entries), end="")
    else:
        show("\n".join([*(printable(str(each)) for each in findings), total]))
    return 1 if any(each.grave for each in findings) else 0


def _json(value: Any) -> str:
    return json.dumps(spell(value), indent=1, allow_nan=False) + "\n"


def _evaluate(options: Any) -> int:
    record, summary = _with_checkpoint(options)
    from runner.repeat import evaluate, here

    found = evaluate(record.path, here(record.config, options.data, options.device), summary["steps"])
    lines, differing = [["", "recorded", "now", ""]], 0
    for metric, now in found.items():
        recorded = record.value(metric)
        if recorded is None and ":" in metric:  # the record is of a version that did not ask this
            lines.append([metric, "", repr(now), "not recorded"])
            continue
        equal = recorded == now or (recorded is not None and math.isnan(recorded) and math.isnan(now))
        differing += not equal
        lines.append([metric, repr(recorded), repr(now), "equal" if equal else "differs"])
    show(text.columns(lines), end="")
    if differing:
        say([f"{differing} of {len(lines) - 1} metrics are not the recorded ones; {_made(record)}."])
        return 1
    told = sum(line[-1] == "equal" for line in lines)
    show(f"All {told} metrics equal the recorded ones exactly.")
    return 0


def _rerun(options: Any) -> int:
    record, problems = ledger.find(options.run, collect_runs(options.runs))
    summary = _result(record)
    if problems:
        raise Misuse(f"There is nothing whole to compare with: {problems[0]}")
    root = options.out or (Path(compose()["runs"]) if record.packed else record.path.absolute().parents[4]) / "rerun"
    from runner.execute import REQUEUE
    from runner.repeat import first_difference, here, rerun, results, summary_differences
    from runner.trainer import Interrupted

    try:
        path = rerun(here(record.config, options.data, options.device), list(record.overrides), root, _say_epoch)
    except Interrupted:
        say(["Interrupted and saved; the same command goes on."])
        return REQUEUE
    show(f"The repetition is in {path}.")
    new_summary, new = results(path)
    old = [{name: number.read(v) if isinstance(v, str) else v for name, v in line.items()} for line in record.metrics]
    if record.packed:  # its columns are rounded, its summary is not
        new = [{name: number.rounded(value) for name, value in line.items()} for line in new]
    if found := first_difference(old, new):
        epoch, (field, was, now) = found
        say([f"Epoch {epoch} is the first that differs: {field} was {was!r} and is {now!r} now; {_made(record)}."])
        return 1
    if others := summary_differences(summary, new_summary):
        field, was, now = others[0]
        say([f"All epochs are equal, but in the summary {field} was {was!r} and is {now!r} now; {_made(record)}."])
        return 1
    kind = "to the 6 digits of a packed record" if record.packed else "bit for bit"
    show(f"All {len(new)} epochs are equal {kind}, and the summary bit for bit (times aside).")
    return 0


def _compact(options: Any) -> int:
    """Writes the record even when the outputs differ, and says so: 1."""
    _counts(options, "batch", "rounds", "threads")
    record, summary = _with_checkpoint(options)
    from runner.repeat import here
    from runner.speedup import measure

    config = here(record.config, options.data, options.device)
    config["trainer"] = config["trainer"] | ({"threads": options.threads} if options.threads else {})
    found = measure(record.path, config, summary["steps"], options.batch, options.rounds)
    show(text.compact(found), end="")
    path = options.out or record.path / "compact.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    say([f"The record is {path}."])
    if not found["outputs"]["equal"]:
        say(["The outputs differ by more than rounding."])
        return 1
    return 0


def _export(options: Any) -> int:
    """Writes nothing when the outputs differ: 1."""
    _counts(options, "images")
    record, summary = _with_checkpoint(options)
    from runner.export import of_run
    from runner.repeat import here

    config = here(record.config, options.data, options.device)
    path = options.out or record.path / "model.onnx"
    found = of_run(record.path, config, summary["steps"], options.images, path)
    show(text.export(found), end="")
    if not found["outputs"]["equal"]:
        say(["The outputs differ by more than rounding; nothing is written."])
        return 1
    say([f"The model is {path}."])
    return 0


def _release(options: Any) -> int:
    """Refuses a folder that holds something else."""
    _counts(options, "images")
    record, summary = _with_checkpoint(options)
    from results.render.card import card
    from runner.release import of_run
    from runner.repeat import here

    config = here(record.config, options.data, options.device)
    out = options.out or record.path / "release"
    run = ledger.whole(record, Collection({}))
    found = of_run(record.path, config, summary["steps"], options.images, out)
    write_atomic(out / "README.md", card(run, found).encode())
    print(text.release(found), end="")
    say([f"The network and its card are in {out}."])
    return 0


def _engines(options: Any) -> int:
    """Writes the record even when outputs differ, and says so: 1."""
    _counts(options, "openings", "rounds")
    if (options.run is None) == (options.untrained is None):
        raise Misuse("Name either a run or, with --untrained, networks that were never trained.")
    if options.untrained is None:
        record, summary = _with_checkpoint(options)
        path = options.out or record.path / TIMES_FILE
    else:
        if options.data or options.device:
            raise Misuse("--data and --device are a run's: networks that were never trained see random images.")
        configs, name = _configs(options.untrained)
        path = options.out or ENGINES / f"{name}.json"
    from runner import engines, inference
    from runner.repeat import here

    settings = inference.settings_of(options.setting)
    plan = inference.Plan(options.openings, options.rounds)
    chosen = list(dict.fromkeys(options.engine or engines.DEFAULT))
    if options.untrained is None:
        config = here(record.config, options.data, options.device)
        found = inference.measure_run(record.path, config, summary["steps"], chosen, settings, plan)
        networks = [found, *([{**found, **found["dense"]}] if "dense" in found else [])]
    else:
        found = inference.measure_untrained(configs, chosen, settings, plan, lambda line: say([line]))
        networks = found["networks"]
    show(text.engines(found), end="")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    say([f"The record is {path}."])
    if not all(each["equal"] for n in networks for engine in n["times"].values() for each in engine.values()):
        say(["Outputs of an engine differ from torch's by more than rounding."])
        return 1
    return 0


def _configs(targets: Sequence[str]) -> tuple[list[Config], str]:
    """The configs of the cells of addresses, or of one list of overrides; and a name for their record."""
    given = [target for target in targets if "=" in target]
    if given and len(given) < len(targets):
        raise Misuse("--untrained takes addresses of tables, or overrides, not both.")
    if given:
        config = compose(given)
        return [config], f"{config['model']['name']}_{config['method']['name']}".replace("/", "_")
    slots = [slot for selection in select(targets) for slot in selection.slots()]
    slots = [slot for slot in slots if slot.settings.kind != "derived" and not slot.needs and slot.calibrated]
    if not slots:
        raise Misuse(f"No cell of {', '.join(targets)} has a network.")
    overrides = dict.fromkeys(slot.overrides for slot in slots)
    return [compose(list(each)) for each in overrides], "_".join(targets).replace("/", "_").replace("*", "all")


def _counts(options: Any, *names: str) -> None:
    """Misuse when one of these options is below 1."""
    for name in names:
        if (value := getattr(options, name)) is not None and value < 1:
            raise Misuse(f"--{name} {value} should be 1 or above.")


def _with_checkpoint(options: Any) -> tuple[Record, dict[str, Any]]:
    """The run that `options` name, which must have a checkpoint and a result; and its summary."""
    record, _ = ledger.find(options.run, collect_runs(options.runs))
    summary = _result(record)
    if record.packed:
        raise Misuse(f"{record.path} is a packed record, which has no checkpoint; repeat the run with rerun.")
    return record, summary


def _result(record: Record) -> dict[str, Any]:
    """The summary of a run that came to a result."""
    if record.status not in SETTLED or record.summary is None:
        raise Misuse(f"{record.path} is {record.status}; only a completed or diverged run has numbers to compare with.")
    if not isinstance(record.summary.get("final"), dict) or not isinstance(record.summary.get("steps"), int):
        raise Misuse(f"{record.path} has a summary without final metrics; nothing can be compared.")
    return dict(record.summary)


def _made(record: Record) -> str:
    """Where the record was made, for the reader of a difference."""
    environment = record.environment
    torch = (environment.get("packages") or {}).get("torch")
    threads = f"{environment.get('threads')} thread(s)"
    return f"it was made by {text.code(ledger.row(record))} on {environment.get('device')}, {threads}, torch {torch}"


def _say_epoch(line: dict[str, Any]) -> None:
    say([f"  epoch {line['epoch']}: {line['time/epoch_s']:.2f} s"])


def _gc(options: Any) -> int:
    if not options.older_than >= 0:
        raise Misuse(f"--older-than {options.older_than} should be a number of days, 0 or above.")
    age = options.older_than * DAY_S
    runs, roots = collect_runs(options.runs), options.runs or [Path(compose()["runs"])]
    settled = {identity for identity, record in runs.runs.items() if record.status in SETTLED}
    needed: set[tuple[str, int]] | None = None
    try:
        needed = wanted(_stages(runs, roots), settled)
    except Misuse as error:
        say([f"{error} Last checkpoints are all kept, because a stage may need them."])
    found: list[Leftover] = []
    for path in run_directories(roots):
        try:
            found += leftovers(path, needed, age)
        except Misuse as error:
            say([str(error)])
    if not found:
        show("There is nothing to delete.")
        return 0
    show(text.columns([[_bytes(each.size), str(each.path), each.why] for each in found]), end="")
    total = f"{len(found)} leftover(s), {_bytes(sum(each.size for each in found))}"
    if options.yes:
        show(f"{total}; {_bytes(delete(found, needed, age))} deleted.")
    else:
        show(f"{total}. Nothing is deleted without --yes. A stage thought of later needs its parent run again.")
    return 0


def _stages(runs: Collection, roots: Iterable[Path]) -> Iterable[Config]:
    """The configurations, with their seeds, of all runs that exist, were submitted or stand in a table."""
    yield from (dict(record.config) for record in runs.runs.values())
    for root in roots:
        for file in sorted((root / FOLDER).glob(f"*/{TASKS}")):
            yield from (task.config for task in load(file))
    profiles = {ledger.row(record)["profile"] for record in runs.runs.values()} - {None, "full"}
    for selection in select():
        for profile in (None, *sorted(profiles)):
            slots = [slot for slot in selection.slots(profile) if not slot.needs and _may_be_stage(slot.overrides)]
            yield from (run.config for run in plan(slots))


def _may_be_stage(overrides: Sequence[str]) -> bool:
    """Whether these overrides can make a stage: asked of the group choices alone, which many cells share."""
    names = [override.partition("=")[0] for override in overrides]
    if any(name.split(".")[0] == "start" for name in names):
        return True
    return _makes_stage(tuple(o for o, name in zip(overrides, names, strict=True) if name in groups()))


@functools.cache
def _makes_stage(choices: tuple[str, ...]) -> bool:
    return compose(choices)["start"] is not None


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _pack(options: Any) -> int:
    runs = collect_runs(options.runs)
    say(runs.sentences())
    records = [record for record in ledger.matching(runs, options.filters) if not record.packed]
    settled = [record for record in records if record.status in SETTLED]
    allowed = [record for record in settled if options.allow_dirty or ledger.row(record)["dirty"] is False]
    packed = 0
    for record in allowed:
        try:
            show(str(write_packed(record.path, options.out)))
            packed += 1
        except Misuse as error:
            say([str(error)])
    sentences = [f"{packed} run(s) packed."]
    if refused := len(settled) - len(allowed):
        sentences.append(f"{refused} run(s) refused: their code was not committed; --allow-dirty packs them too.")
    if unfinished := len(records) - len(settled):
        sentences.append(f"{unfinished} run(s) left out: they have no result yet.")
    say(sentences)
    return 0 if packed == len(settled) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the program quietly
    sys.exit(main())
