"""Times of inference: the engines, the networks that are timed, the records, and what tables read from them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from methods.allocation import kept_of, prunable_weights
from results import engines as records
from results.address import select
from results.collect import collect, write_packed
from results.fill import fill
from results.hyperparameters import evaluate, lookup
from runner import engines, inference
from runner.cluster import cores
from runner.compose import compose
from runner.engines import Array, Network, apart
from runner.errors import Misuse
from runner.execute import execute
from runner.experiment import make
from runner.identity import key, run_dir
from runner.inference import Setting, drawn, settings_of, twin
from runner.repeat import finished, here
from runner.semi_structured import converted, is_2_of_4
from scripts import runs as command

RUN = (
    "dataset=digits",
    "dataset.train_subset=100",
    "schedule.batch_size=20",
    "schedule.lr=0.1",
    "schedule.epochs=1",
    "model.hidden=[20,10]",
    "method=static",
    "method.sparsity=0.8",
)
NET = ("dataset=digits", "model=resnet20", "model.depth=8", "model.width=4", "method=oneshot", "start=null")


class Fake:
    """An engine that computes with torch and whose passes take the seconds that are written down."""

    rounding = 1e-4
    wrong = 0.0

    def __init__(self, *seconds: float) -> None:
        self.about = {"version": "1"}
        self.seconds = seconds
        self.opened: list[tuple[int, int]] = []
        self.closed = 0

    def open(self, network: Network, batch: int, threads: int) -> Any:
        self.opened.append((batch, threads))
        place, outer = len(self.opened) - 1, self

        class Session:
            facts = {"own": True}
            left = list(outer.seconds[place::2])  # two networks take turns

            def outputs(self, images: Array) -> Array:
                with torch.no_grad():
                    return np.asarray(network.model(torch.from_numpy(images)) + outer.wrong)

            def seconds(self, images: Array, passes: int, warm: bool) -> float:
                assert images.shape[0] == batch
                return self.left.pop(0)

            def close(self) -> None:
                outer.closed += 1

        return Session()

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    given = [*RUN, f"runs={root}"]
    execute(compose(given), given)
    return root


@pytest.fixture
def call(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = command.main(["engines", *map(str, arguments), "--runs", str(root)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    pytest.importorskip("onnxscript", reason="exporting needs: pip install 'regrow[engines]'")
    # First of each network a pass that counts for nothing but how many a turn has; then 3 rounds of (sparse, dense).
    engine = Fake(0.1, 0.2, 0.010, 0.020, 0.020, 0.030, 0.030, 0.120)
    monkeypatch.setitem(engines.ENGINES, "fake", lambda: engine)
    return engine


# The record of a run


@pytest.mark.slow
def test_times_and_ratios_are_those_of_the_rounds(root: Path, call: Callable[..., Any], fake: Fake) -> None:
    config = compose([*RUN, f"runs={root}"])
    path = run_dir(root, config)
    code, out, err = call(key(config), "--engine", "fake", "--setting", "3x1", "--openings", "1", "--rounds", "3")
    assert (code, err) == (0, f"The record is {path / 'engines.json'}.\n")
    found = json.loads((path / "engines.json").read_text())
    time = found["times"]["fake"]["batch3_threads1"]
    assert (time["ms"], time["least"], time["greatest"]) == (20, 10, 30)
    assert time["speedup"] == {"median": 2, "least": 1.5, "greatest": 4}  # 20 / 10, 30 / 20, 120 / 30
    assert found["dense"]["times"]["fake"]["batch3_threads1"]["ms"] == 30
    assert (time["passes"], time["equal"], time["own"]) == (2, True, True) and time["difference"] < 1e-6
    assert fake.opened == [(3, 1), (3, 1)] and fake.closed == 2
    kept = sum(kept_of(n, 0.8) for n in (64 * 20, 200, 100))
    assert found["weights"] == {"all": 1580, "left": kept} and found["macs"] == {"all": 1580, "left": kept}
    assert found["zeros"]["model"] == found["zeros"]["exported"] == 1580 - kept
    assert found["dense"]["zeros"]["model"] == 0 and found["baseline"] == inference.TWIN
    assert (found["key"], found["seed"], found["rounds"], found["precision"]) == (key(config), 0, 3, "fp32")
    assert found["environment"]["cores"] == cores() and "torch" in found["environment"]["packages"]
    assert "sparse" in out and "20.00" in out and "[1.50, 4.00]" in out


@pytest.mark.slow
def test_every_opening_has_rounds_of_its_own(
    root: Path, call: Callable[..., Any], fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratios are those of networks that were open at the same time: 20 / 10, 30 / 20, then 60 / 10, 40 / 40."""
    monkeypatch.setitem(engines.ENGINES, "fake", lambda: Reopened())
    opened: list[Fake] = []

    class Reopened(Fake):
        def __init__(self) -> None:
            super().__init__(0.1, 0.2, 0.010, 0.020, 0.020, 0.030)
            opened.append(self)

        def open(self, network: Network, batch: int, threads: int) -> Any:
            if len(self.opened) == 2:
                assert self.closed == 2
                self.seconds, self.opened = (0.1, 0.2, 0.010, 0.060, 0.040, 0.040), []
            return super().open(network, batch, threads)

    given = [key(compose([*RUN, f"runs={root}"])), "--engine", "fake", "--setting", "3x1"]
    assert call(*given, "--openings", "2", "--rounds", "2", "--out", root / "reopened.json")[0] == 0
    found = json.loads((root / "reopened.json").read_text())
    assert (found["openings"], found["rounds"]) == (2, 2)
    time = found["times"]["fake"]["batch3_threads1"]
    assert time["speedup_by_opening"] == [1.75, 3.5] and time["speedup"] == {"median": 1.75, "least": 1, "greatest": 6}
    assert (time["ms"], time["least"], time["greatest"]) == (15, 10, 40)
    assert [each.closed for each in opened] == [4]


def test_a_cell_reads_the_times_of_its_own_run(
    root: Path, call: Callable[..., Any], fake: Fake, tmp_path: Path
) -> None:
    config = compose([*RUN, f"runs={root}"])
    path = run_dir(root, config)
    assert call(key(config), "--engine", "fake", "--setting", "3x1", "--openings", "1", "--rounds", "3")[0] == 0
    metric = "engines:fake/batch3_threads1/ms"

    def value(folder: Path, name: str = metric) -> float | None:
        (record,) = collect([folder]).runs.values()
        return record.value(name)

    assert value(root) == 20
    assert value(root, "engines:fake/batch3_threads2/ms") is None
    packed = write_packed(path, tmp_path)
    assert value(tmp_path) is None
    times = json.loads((path / "engines.json").read_text())
    packed.with_name("engines.json").write_text(json.dumps(times))
    assert value(tmp_path) == 20
    packed.with_name("engines.json").write_text(json.dumps({**times, "seed": 1}))  # another run's
    assert value(tmp_path) is None


@pytest.mark.slow
def test_outputs_that_differ_are_an_error_but_recorded(call: Callable[..., Any], fake: Fake, tmp_path: Path) -> None:
    fake.wrong = 1.0
    file = tmp_path / "record.json"
    code, out, err = call(
        key(compose(RUN)), "--engine", "fake", "--setting", "3x1", "--openings", "1", "--rounds", "3", "--out", file
    )
    assert (code, err) == (
        1,
        f"The record is {file}.\nOutputs of an engine differ from torch's by more than rounding.\n",
    )
    assert "not equal" in out and not json.loads(file.read_text())["times"]["fake"]["batch3_threads1"]["equal"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_an_engine_gives_the_networks_outputs(name: str, call: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="exporting needs: pip install 'regrow[engines]'")
    pytest.importorskip(name, reason=f"{name} is not installed: pip install 'regrow[engines]'")
    file = tmp_path / "record.json"
    code, _, _ = call(
        key(compose(RUN)),
        "--engine",
        name,
        "--setting",
        "1x1",
        "5x1",
        "--openings",
        "1",
        "--rounds",
        "2",
        "--out",
        file,
    )
    found = json.loads(file.read_text())
    assert code == 0 and set(found["times"][name]) == {"batch1_threads1", "batch5_threads1"}
    for time in (*found["times"][name].values(), *found["dense"]["times"][name].values()):
        assert time["equal"] and 0 <= time["difference"] < 1e-4
        assert 0 < time["least"] <= time["ms"] <= time["greatest"]
    assert found["engines"][name]["version"]


def test_the_twin_is_the_network_without_zeros(root: Path) -> None:
    config = compose([*RUN, f"runs={root}"])
    model = finished(run_dir(root, config), here(config), 5).model
    other = twin(model, 0)
    for name, weight in prunable_weights(model).items():
        full = prunable_weights(other)[name]
        kept = weight != 0
        assert not kept.all() and full.all() and torch.equal(full[kept], weight[kept])
        assert 0.5 < full[~kept].square().mean() / weight[kept].square().mean() < 2


# Networks that were never trained


def test_an_untrained_network_is_its_seeds_pruned_by_magnitude() -> None:
    given = [*NET, "method.sparsity=0.75", "method.allocation=uniform", "method.keep_dense=[stem]", "seed=3"]
    config = compose(given)
    network = records.untrained(config)
    model, first = drawn(network), make(config).model  # what a run of these overrides starts from
    before = prunable_weights(first)
    for name, weight in prunable_weights(model).items():
        kept = weight != 0
        assert torch.equal(weight[kept], before[name][kept])
        if name == "stem.weight":
            assert kept.all()
            continue
        assert int(kept.sum()) == kept_of(weight.numel(), 0.75)
        assert before[name][kept].abs().min() >= before[name][~kept].abs().max()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(norm.running_var.std() > 0 and norm.momentum == 0.1 for norm in norms)
    again = drawn(network).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_a_layer_that_magnitude_empties_is_refused() -> None:
    network = records.untrained(
        compose(["dataset=digits", "model.hidden=[20,10]", "method=oneshot", "method.sparsity=0.999"])
    )
    with pytest.raises(Misuse, match=r"leaves nothing of fc1, fc2 in a lenet_300_100 that was never trained"):
        drawn(network)


def test_a_layer_that_is_not_there_is_a_misuse() -> None:
    with pytest.raises(Misuse, match=r"^method: keep_dense pattern 'conv1' matches none of the layers stem, "):
        drawn(records.untrained(compose([*NET, "method.sparsity=0.5", "method.keep_dense=[conv1]"])))


@pytest.mark.slow
def test_untrained_networks_share_the_dense_one(call: Callable[..., Any], fake: Fake, tmp_path: Path) -> None:
    # The unpruned network comes first, and is the baseline.
    file = tmp_path / "engines" / "net.json"
    given = [*NET, "method.sparsity=0.5", "method.allocation=uniform"]
    assert inference.distinct([compose([*NET, "method=dense"]), compose(given), compose(given)]) == [
        [records.untrained(compose([*NET, "method=dense"])), records.untrained(compose(given))]
    ]
    code, out, err = call(
        "--untrained", *given, "--engine", "fake", "--setting", "2x1", "--openings", "1", "--rounds", "3", "--out", file
    )
    assert code == 0 and err.endswith(f"The record is {file}.\n")
    found = json.loads(file.read_text())
    dense, half = found["networks"]
    assert dense["pruning"]["sparsity"] == 0 and half["pruning"] == {
        "sparsity": 0.5,
        "allocation": "uniform",
        "keep_dense": [],
    }
    assert half["times"]["fake"]["batch2_threads1"]["speedup"]["median"] == pytest.approx(1 / 2, abs=1e-3)
    assert dense["zeros"]["model"] == 0 and half["weights"]["left"] * 2 == pytest.approx(half["weights"]["all"], abs=20)
    assert "never trained" in found["weights"] and "never trained" in out
    # Cells find it by what it is.
    facts = records.facts(compose(given), file.parent)
    assert facts["fake"]["batch2_threads1"]["ms"] == half["times"]["fake"]["batch2_threads1"]["ms"]
    assert records.facts(compose([*NET, "method=dense"]), file.parent)["macs"]["left"] == dense["macs"]["all"]
    with pytest.raises(
        Misuse, match=r"No record in engines/ .* tells the times of resnet20 with 60% of its weights pruned"
    ):
        records.facts(compose([*given, "method.sparsity=0.6"]), file.parent)
    file.with_name("second.json").write_text(file.read_text())
    with pytest.raises(Misuse, match=r"net\.json and .*second\.json both tell the times of resnet20 .* remove one"):
        records.facts(compose(given), file.parent)
    file.with_name("second.json").write_text("{")
    with pytest.raises(Misuse, match=r"second\.json is not a whole record of times .* measure it again"):
        records.facts(compose(given), file.parent)


def test_a_cell_without_a_record_is_missing_and_says_what_measures_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records.facts, "__defaults__", (tmp_path,))
    (selection,) = select(["acdc/engines/resnet50_dense"])
    cells = fill(selection, collect([])).cells.values()
    assert {cell.status for cell in cells} == {"missing"} and {cell.text for cell in cells} == {None}
    assert len({problem for cell in cells for problem in cell.problems}) == 1
    (problem,) = {problem for cell in cells for problem in cell.problems}
    assert "`python scripts/runs.py engines --untrained ADDRESS` measures them" in problem


def test_what_a_record_does_not_tell_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"fake": {"batch1_threads1": {"ms": 2.5}}, "weights": {}, "macs": {"all": 8, "left": 2}}
    monkeypatch.setattr(records, "facts", lambda config: told)
    config = {"model": {"name": "net"}}
    assert evaluate("100 * engines.macs.left / engines.macs.all", config) == 25
    assert lookup("engines.fake.batch1_threads1.ms", config) == 2.5
    for path in ("engines.fake.batch64_threads1.ms", "engines.other", "engines.macs.all.ms"):
        with pytest.raises(records.Unmeasured, match=f"net tells no {path.removeprefix('engines.')}; measure it"):
            lookup(path, config)


def test_only_a_method_that_states_its_sparsity_can_be_stood_in_for() -> None:
    with pytest.raises(Misuse, match="method str states no sparsity"):
        records.untrained(compose(["dataset=digits", "method=str"]))


# What is asked


def test_settings_are_of_this_machine() -> None:
    here_ = cores()
    assert settings_of(None) == [Setting(1, here_), Setting(64, here_)]
    assert settings_of(["7x1"]) == [Setting(7, 1)] and settings_of(["7x1"])[0].name == "batch7_threads1"
    for wrong in ("7", "x1", "7x0", "0x1", "7x1x2", "axb"):
        with pytest.raises(Misuse, match="should be BATCHxTHREADS"):
            settings_of([wrong])
    with pytest.raises(Misuse, match=rf"asks for {here_ + 1} cores, and this machine has {here_}"):
        settings_of([f"1x{here_ + 1}"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Name either a run or, with --untrained,"),
        (("x", "--untrained", "acdc/engines"), "Name either a run or, with --untrained,"),
        (("--untrained", "acdc/engines", "model=resnet20"), "addresses of tables, or overrides, not both"),
        (("--untrained", "acdc/engine"), "There is no table 'acdc/engine'"),
        (("--untrained", "acdc/engines", "--data", "x"), "--data and --device are a run's"),
        (("x", "--rounds", "0"), "--rounds 0 should be 1 or above"),
        (("x", "--openings", "0"), "--openings 0 should be 1 or above"),
    ],
)
def test_a_misuse_is_one_sentence(arguments: tuple[str, ...], sentence: str, call: Callable[..., Any]) -> None:
    code, out, err = call(*arguments)
    assert (code, out) == (2, "") and sentence in err and err.count("\n") == 1


def test_an_engine_that_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(engines, "DEEPSPARSE", tmp_path / "nowhere")
    with pytest.raises(Misuse, match=r"openvino is not installed: pip install 'regrow\[engines\]'"):
        engines.start(["openvino"])
    with pytest.raises(Misuse, match=r"DeepSparse is not installed .*: make deepsparse; or leave it out"):
        engines.start(["deepsparse"])
    with pytest.raises(Misuse, match=r"There is no engine 'openvin'\. Did you mean 'openvino'"):
        engines.start(["openvin"])
    if not torch.cuda.is_available():
        with pytest.raises(Misuse, match="semi_structured needs an NVIDIA GPU"):
            engines.start(["semi_structured"])


def test_outputs_are_compared_by_the_largest() -> None:
    wanted = np.array([[4.0, -8.0]], dtype=np.float32)
    assert apart(wanted + np.float32(0.5), wanted) == 0.0625
    assert apart(np.array([[np.nan, -8.0]], dtype=np.float32), wanted) == np.inf
    assert apart(wanted[:, :1], wanted) == np.inf


# DeepSparse, in its own process

FAKE = """
import numpy as np
print("a banner")  # which must not get between the answers

class cpu:
    @staticmethod
    def cpu_architecture():
        return type("Architecture", (), {"isa": "avx512"})

class Engine:
    def __init__(self, file, batch_size, num_cores):
        if "absent" in file:
            raise RuntimeError("NM: error: no such file\\nmore")
        self.num_cores = 1 if batch_size == 9 else num_cores
        self.fraction_of_supported_ops = 0.5 if "strange" in file else 0.98
        self.runs = 0
    def run(self, inputs):
        if len(inputs[0]) == 7:
            import os
            os._exit(3)
        self.runs += 1
        return [inputs[0] * 2]

def compile_model(file, batch_size, num_cores):
    return Engine(file, batch_size, num_cores)
"""


@pytest.fixture
def deepsparse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The engine with a Python whose deepsparse doubles its inputs."""
    (tmp_path / "deepsparse").mkdir()
    (tmp_path / "deepsparse" / "__init__.py").write_text(FAKE)
    (tmp_path / "deepsparse-1.8.0.dist-info").mkdir()
    (tmp_path / "deepsparse-1.8.0.dist-info" / "METADATA").write_text("Name: deepsparse\nVersion: 1.8.0\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(engines, "DEEPSPARSE", python)
    engine = engines.DeepSparse()
    yield engine
    engine.close()


def test_deepsparse_answers_from_its_own_process(deepsparse: engines.DeepSparse) -> None:
    assert deepsparse.about == {"version": "1.8.0", "instructions": "avx512"}
    images = np.arange(6, dtype=np.float32).reshape(2, 3)
    session = deepsparse.open(Network(nn.Identity(), Path("net.onnx")), 2, 2)
    np.testing.assert_array_equal(session.outputs(images), 2 * images)
    assert 0 < session.seconds(images, 3, warm=True) < 60 and session.facts == {"own_operators": 0.98}
    session.close()
    with pytest.raises(Misuse, match="DeepSparse: "):  # it is gone
        session.outputs(images)


@pytest.mark.parametrize(
    ("file", "batch", "sentence"),
    [
        ("absent.onnx", 2, r"^DeepSparse: NM: error: no such file\.$"),
        ("strange.onnx", 2, "computes 50% of this network's operators itself"),
        ("net.onnx", 9, r"it would compute with 1 core\(s\), not 2"),
    ],
)
def test_deepsparse_is_never_another_engine(
    deepsparse: engines.DeepSparse, file: str, batch: int, sentence: str
) -> None:
    with pytest.raises(Misuse, match=sentence):
        deepsparse.open(Network(nn.Identity(), Path(file)), batch, 2)


def test_a_deepsparse_that_dies_is_said_to(deepsparse: engines.DeepSparse) -> None:
    session = deepsparse.open(Network(nn.Identity(), Path("net.onnx")), 7, 1)
    with pytest.raises(Misuse, match="DeepSparse has stopped"):
        session.outputs(np.zeros((7, 1), dtype=np.float32))


@pytest.mark.slow
@pytest.mark.skipif(not engines.DEEPSPARSE.exists(), reason="DeepSparse is not installed: make deepsparse")
def test_the_real_deepsparse_gives_the_networks_outputs(call: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    given = [
        *NET,
        "method.sparsity=0.9",
        "method.allocation=erk",
        "--engine",
        "deepsparse",
        "--openings",
        "1",
        "--rounds",
        "2",
    ]
    code, _, _ = call("--untrained", *given, "--setting", "1x1", "6x1", "--out", file)
    assert code == 0
    for network in json.loads(file.read_text())["networks"]:
        for time in network["times"]["deepsparse"].values():
            assert time["equal"] and time["own_operators"] == 1.0


# 2:4 on a GPU


def two_of_four(seed: int = 0) -> nn.Module:
    """1x1 convolutions and linear layers with 2:4 weights, and layers that stay dense."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(64, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 128, 1, stride=2, bias=False),
        nn.Conv2d(128, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 96),
        nn.Linear(96, 10),
    ).eval()
    with torch.no_grad():
        for place in (0, 3, 4, 7):
            weight = model[place].weight
            groups = weight.movedim(1, -1).reshape(-1, 4)
            mask = torch.zeros_like(groups).scatter_(1, groups.abs().topk(2).indices, 1.0)
            weight.mul_(mask.view(weight.movedim(1, -1).shape).movedim(-1, 1))
    return model


def test_2_of_4_by_hand() -> None:
    assert is_2_of_4(torch.tensor([[0, 1, 2, 0, 3, 0, 0, 4.0]]))
    assert not is_2_of_4(torch.tensor([[0, 1, 2, 3, 0, 0, 0, 4.0]]))  # half of all, but three of the first four
    assert not is_2_of_4(torch.tensor([[0, 1, 2.0]]))


def test_the_layers_that_sparse_tensor_cores_take_are_replaced() -> None:
    model, seen = two_of_four(), []

    def compress(matrix: torch.Tensor) -> torch.Tensor:
        assert is_2_of_4(matrix)
        seen.append(tuple(matrix.shape))
        return matrix.clone()

    sparse, names = converted(model, compress)
    assert names == ["3", "4", "7"]  # not the 3x3 convolution, not the dense layer of 10
    assert seen == [(128, 64), (64, 128), (96, 64)]
    images = torch.randn(2, 64, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(sparse(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_2_of_4_computes_the_same_on_the_gpu(tmp_path: Path) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no sparse tensor cores")
    (engine,) = engines.start(["semi_structured"]).values()
    model = two_of_four()
    session = engine.open(Network(model, tmp_path), 8, 1)
    assert session.facts == {"sparse_layers": 3}
    images = np.random.default_rng(0).standard_normal((8, 64, 16, 16), dtype=np.float32)
    with torch.no_grad():
        wanted = np.asarray(model(torch.from_numpy(images)))
    assert apart(session.outputs(images), wanted) < engine.rounding
    assert session.seconds(images, 3, warm=True) > 0
