"""Every metric that a table or figure reads is one that a run of its method logs: a misspelt one would stay a hole."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.images import Images
from methods.allocation import prunable_weights
from results.address import figures, select
from results.calibration import applied
from results.collect import collect
from results.figure import Figure, RunMetric, choose, load, recorder_of, records
from results.plan import composed, runnable
from results.record import Record, read_directory
from results.series import plot
from results.table import Slot
from runner import experiment
from runner.build import build
from runner.compose import compose
from runner.execute import execute
from runner.identity import run_dir
from runner.recorders import RECORDERS
from tests import streams
from tests.test_every_config import SHAPES
from tests.test_resume import DIGITS, overrides, parents

#: Of a layer, or an epoch: what stands there is another test's matter.
NAMED = re.compile(r"(layers|mask_layers|threshold|l1_penalty|gradient_to_decay):(.+)")
OF_EPOCH = re.compile(r"epoch(\d+):(.+)")


@dataclass(frozen=True)
class Asked:
    """A metric that a cell reads from its runs; `curve`: by epoch."""

    slot: Slot
    metric: str
    curve: bool

    @property
    def config(self) -> dict[str, Any]:
        """Composed; of a knob that is not calibrated yet any value will do."""
        known = tuple(each for each in self.slot.overrides if not each.endswith("=???"))
        return composed(replace(self.slot, overrides=known)).config

    @property
    def method(self) -> str:
        return str(self.config["method"]["name"])

    @property
    def of_text(self) -> bool:
        return "train_tokens" in self.config["dataset"]


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    """Of all tables and figures, without the cells that need what is not there yet."""
    return list(_asked())


def _asked() -> Iterator[Asked]:
    for selection in select():
        for slot in filter(_readable, selection.table.slots()):
            yield Asked(slot, slot.settings.metric or "", curve=False)
    for figure in _figures():
        for slot in filter(_readable, figure.selection.slots()):
            yield Asked(slot, slot.settings.metric or "", curve=figure.kind == "curves")
            if isinstance(figure.x, RunMetric):
                yield Asked(slot, figure.x.metric, curve=False)


def _figures() -> list[Figure]:
    found = [load(path) for path in figures().values()]
    return [figure for figure in found if not figure.needs and figure.kind not in ("layers", "schedule")]


def _readable(slot: Slot) -> bool:
    return slot.settings.kind == "runs" and not slot.needs


def stand_in(section: dict[str, Any], group: str, **given: Any) -> Any:
    """`build`, but of a dataset: 48 digits among 12 classes, of which some are held out and some have other labels."""
    made = build(section, group, **given)
    if group != "dataset" or not isinstance(made, Images):
        return made
    train, test = ((images[:size], labels[:size]) for (images, labels), size in ((made.train, 48), (made.test, 12)))
    return Images(
        train, test, num_classes=12, mean=[0.3053], std=[0.3760], peak=16.0, validation=12, corrupted_labels=3
    )


def tiny(root: Path, method: str, of_text: bool) -> Record:
    """A run of the method on the stand-in, or on a miniature text, in reduced precision and with every record."""
    everything = [f"trainer.records=[{','.join(RECORDERS)}]", f"runs={root}"]
    if of_text:
        short = ["schedule.epochs=4", "schedule.lr=0.1"]
        before = ["method=acdc", "method.sparsity=0.5", "schedule=lamb", "schedule.batch_size=4", *short]
        start = [f"start.parent={before}"] if parents(method) else []
        given = streams.overrides(root / "text", f"method={method}", *short, *start, *everything)
        if not (root / "text").exists():
            streams.write(root / "text")
    else:
        given = [*overrides(method, "plain", "bf16"), "dataset.train_subset=null", "schedule.l2=1e-3", *everything]
        given += ["schedule.epochs=4"] if method == "acdc" else []  # two phases of each kind
    config = compose(given)
    summary = execute(config, given)
    assert summary["status"] == "completed", (method, summary["reason"])
    return read_directory(run_dir(root, config))[0]


def there(record: Record, metric: str, curve: bool) -> bool:
    """Whether the record has the metric, of some layer or epoch where it is one's."""
    if of_layer := NAMED.fullmatch(metric):
        kind = of_layer[1]
        if not curve and kind == "layers":
            return all(record.value(f"layers:{name}") is not None for name in (record.summary or {})["layers"])
        return any(name.startswith(f"{kind}:") for line in record.metrics for name in line)
    metric = OF_EPOCH.sub(r"epoch1:\2", metric)
    return bool(record.history(metric.removeprefix("best:"))) if curve else record.value(metric) is not None


@pytest.mark.slow
def test_every_metric_is_logged_by_a_run_of_its_method(
    tmp_path: Path, asked: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "build", stand_in)
    wanted: dict[tuple[str, bool], dict[tuple[str, bool], str]] = defaultdict(dict)
    for each in asked:
        if each.metric.startswith(("engines:", "spikes/")):
            continue  # measured by `runs.py engines` afterwards; by spiking networks, which the small one here is not:
            # tests/test_engines.py and tests/test_spiking.py read such metrics
        wanted[each.method, each.of_text].setdefault((each.metric, each.curve), each.slot.address)
    assert len(wanted) > 30 and sum(map(len, wanted.values())) > 150
    holes = []
    for (method, of_text), metrics in wanted.items():
        record = tiny(tmp_path, method, of_text)
        assert record.value("test/nothing") is None and not there(record, "test/nothing", True)
        holes += [f"{address}: {m}, {method}" for (m, by), address in metrics.items() if not there(record, m, by)]
    assert holes == []


def test_what_only_a_recorder_knows_is_asked_of_the_runs(asked: list[Asked]) -> None:
    """A table's runs record what some figure of the same runs asks for, and nothing else."""
    wanted = []
    for each in asked:
        metric = OF_EPOCH.sub(r"\2", each.metric)
        recorder = None if each.metric.startswith("layers:") and not each.curve else recorder_of(metric)
        slot, _ = applied(each.slot, compose)
        if recorder is not None and runnable(slot):
            wanted.append((slot, recorder, each.metric))
    assert len(wanted) > 50
    recorded = records([slot for slot, _, _ in wanted])
    lacking = [f"{s.address}: {m}" for s, recorder, m in wanted if recorder not in recorded.get(composed(s).key, ())]
    assert lacking == []


def test_probes_are_of_data_that_have_them(asked: list[Asked]) -> None:
    seen = set()
    for each in asked:
        for begins, option in (("validation/", "validation"), ("train/corrupted_", "corrupted_labels")):
            if begins in each.metric:
                assert each.config["dataset"][option] > 0, each.slot.address
                seen.add(option)
    assert seen == {"validation", "corrupted_labels"}


def test_epochs_that_are_named_are_there(asked: list[Asked]) -> None:
    named = [(each, int(match[1])) for each in asked if (match := OF_EPOCH.fullmatch(each.metric))]
    assert named
    assert [each.slot.address for each, epoch in named if not 1 <= epoch <= each.config["schedule"]["epochs"]] == []


def test_layers_that_are_named_are_the_models(asked: list[Asked]) -> None:
    layers: dict[str, set[str]] = {}
    count = 0
    for each in asked:
        name = match[2] if (match := NAMED.fullmatch(each.metric)) else "all"
        if name == "all":
            continue
        config = each.config
        model = repr((config["model"], config["method"]["keep_dense"], config["dataset"]["name"]))
        if model not in layers:
            classes = {"imagenet": 1000, "cifar100": 100}.get(config["dataset"]["name"], 10)
            shape = tuple(SHAPES[config["dataset"]["name"]])
            with torch.device("meta"):
                net = build(config["model"], "model", num_classes=classes, in_shape=shape)
            found = prunable_weights(net, config["method"]["keep_dense"])
            layers[model] = {weight.removesuffix(".weight") for weight in found}
        assert name in layers[model], f"{each.slot.address} reads {each.metric}, but there is no such layer"
        count += 1
    assert count > 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        *((f"figure{number}b", [5]) for number in (4, 5, 7)),  # the mask of the second sparse phase, from the first's
        ("figure6a", [3, 6]),
        ("figure6b", [2, 4]),
        ("figure4a_accuracy", [1, 2, 3, 4, 5, 6]),
        ("figure5a_sparsity", [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_figures_of_phases_are_drawn_from_runs(tmp_path: Path, name: str, epochs: list[int]) -> None:
    """The figure's own file, its experiment exchanged for six epochs on digits: D D S D S S."""
    content = yaml.safe_load(figures()[f"acdc/{name}"].read_text())
    folder = tmp_path / "papers" / "acdc" / "figures"
    folder.mkdir(parents=True)
    given = ["method=acdc", "method.phase_epochs=[2,1,1,2]", *DIGITS, "schedule.epochs=6"]
    records_asked = content.get("records", [])
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content | {"overrides": given, "rows": content["rows"][:2]}))
    (figure,) = choose([f"acdc/{name}"], tmp_path / "papers")
    for slot in figure.selection.slots():
        overrides = [*slot.overrides, f"trainer.records=[{','.join(records_asked)}]", f"runs={tmp_path / 'runs'}"]
        execute(compose(overrides), overrides)
    plotted = plot(figure, collect([tmp_path / "runs"], ()), papers=tmp_path / "papers")
    assert len(plotted.series) == 2 and not plotted.remarks
    for series in plotted.series:
        assert list(series.x) == epochs
        assert all(0 <= value <= 100 for value in series.mean)
        if name == "figure6a":
            assert all(value < 50 for value in series.mean)
        if name == "figure6b":
            assert all(value > 50 for value in series.mean)
        if name.endswith("sparsity"):
            assert [value > 40 for value in series.mean] == [False, False, True, False, True, True]
