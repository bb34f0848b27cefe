"""Architecture records: current, torch-free to read, right by hand; what expressions find in them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from models import records
from models.report import main, section
from models.stages import stages
from results import architecture, hyperparameters
from results.architecture import FOLDER, Inputs, facts, inputs, record, request, wanted
from results.settings import Settings
from runner.build import build
from runner.compose import compose, names
from runner.errors import Misuse
from scripts import make_tables

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def every() -> list[dict[str, Any]]:
    """What all tables and figures ask for."""
    return wanted()


def test_the_committed_records_are_those_that_the_tables_ask_for(every: list[dict[str, Any]]) -> None:
    """Their content is another test's; `python -m models.account --tables` writes and removes them."""
    asked = {each["file"]: each for each in every}
    kept = {path.name: json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
    assert kept.keys() == asked.keys(), f"run {architecture.WRITE}"
    for name, content in kept.items():
        for field in ("model", "in_shape", "num_classes"):
            assert content[field] == asked[name][field], name


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_record_is_what_the_model_counts_today(path: Path) -> None:
    content = json.loads(path.read_text())
    assert path.read_text() == records.record(content), f"run {architecture.WRITE}"


def test_lenet_by_hand() -> None:
    digits = record(compose(["experiment=demo/digits"]))
    assert digits is not None
    weights = [64 * 300, 300 * 100, 100 * 10]
    assert [layer.weights for layer in digits.layers] == [layer.macs for layer in digits.layers] == weights
    assert [layer.shape for layer in digits.layers] == [(300, 64), (100, 300), (10, 100)]
    assert {layer.kind for layer in digits.layers} == {"linear"}
    assert (digits.weights, digits.linear_weights, digits.conv_weights, digits.macs) == (50200, 50200, 0, 50200)
    assert (digits.biases, digits.parameters, digits.batch_norm_parameters) == (410, 50610, 0)
    assert digits.flops == {
        "macs": 50200,
        "2xmac": 100400,
        "dpf": 50600,
        "rigl": 100810,
        "acdc": 100810,
        "acdc_all": 101210,
    }


def test_convolutions_and_linear_layers_are_told_apart() -> None:
    found = record(compose(["experiment=dsr/resnet50_imagenet"]))
    assert found is not None
    assert (found.parameters, found.linear_weights) == (25_557_032, 2048 * 1000)
    assert found.conv_weights + found.linear_weights == found.weights == sum(layer.weights for layer in found.layers)
    assert found.weights + found.biases + found.batch_norm_parameters == found.parameters


def test_expressions_read_facts_of_the_architecture() -> None:
    config = compose(["experiment=demo/digits"])

    def read(expression: str) -> str:
        return hyperparameters.text(Settings(read=expression, number="plain"), config)

    assert read("{architecture.parameters / 1e6:.2f}M") == "0.05M"
    assert read("{architecture.flops.2xmac / architecture.macs:g}") == "2"
    assert read("{architecture.flops.dpf:g} of {architecture.weights:g}") == "50600 of 50200"
    with pytest.raises(Misuse, match=r"no 'architecture\.wieghts'\. Did you mean 'weights'"):
        read("architecture.wieghts")


def test_a_record_that_is_not_there_is_one_sentence() -> None:
    config = compose(["experiment=demo/digits", "model.hidden=[7]"])
    assert record(config) is None
    with pytest.raises(Misuse, match=r"lenet_300_100 on digits; `python -m models.account --tables` writes"):
        facts(config)
    unknown = {**config, "dataset": {"name": "unheard_of"}}
    assert record(unknown) is None and request(unknown) is None
    with pytest.raises(Misuse, match=r"on unheard_of; add the dataset to .*inputs\.yaml first"):
        facts(unknown)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: text[: len(text) // 2], "is not readable"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "has schema 2"),
        (lambda text: text.replace('"macs": 50200,', ""), "is not a whole record"),
    ],
)
def test_a_damaged_record_is_one_sentence(damage: Any, sentence: str, tmp_path: Path) -> None:
    config = compose(["experiment=demo/digits"])
    asked = request(config)
    assert asked is not None
    text = (FOLDER / asked["file"]).read_text()
    (tmp_path / asked["file"]).write_text(damage(text))
    assert damage(text) != text
    with pytest.raises(Misuse, match=f"{sentence}.*--tables"):
        record(config, tmp_path)


def test_where_weights_come_from_is_no_part_of_an_architecture() -> None:
    base = ["dataset=cifar10", "model=timm", "model.name=resnet18"]
    asked = request(compose(base))
    assert asked == request(compose([*base, "model.pretrained=true"]))
    assert asked is not None and asked["model"]["pretrained"] is False
    assert asked != request(compose([*base[1:], "dataset=synthetic", "dataset.num_classes=100"]))
    assert asked != request(compose([*base, "model.name=resnet34"]))


# Inputs


def test_every_dataset_says_what_it_feeds_a_model() -> None:
    """Without it no cost can be estimated; a new dataset needs its line in inputs.yaml, or fields of its own."""
    for name in names("dataset"):
        assert inputs(compose([f"dataset={name}"])["dataset"]) is not None, name
    assert inputs(compose(["dataset=imagenet"])["dataset"]) == Inputs((3, 224, 224), 1000, 1281167)
    assert inputs(compose(["dataset=synthetic", "dataset.shape=[1,4,4]"])["dataset"]) == Inputs((1, 4, 4), 10, 1024)
    assert inputs({"name": "unheard_of"}) is None


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_inputs_are_those_of_the_data(name: str) -> None:
    root = os.environ.get("REGROW_DATA")
    if name != "digits" and (not root or not (Path(root) / name).is_dir()):
        pytest.skip(f"REGROW_DATA names no folder with {name} in it")
    section = compose([f"dataset={name}"])["dataset"]
    data = build(section, "dataset", root=str(root))
    assert inputs(section) == Inputs(tuple(data.in_shape), data.num_classes, data.train_size)


def test_inputs_of_cifar_are_those_that_its_reader_demands() -> None:
    from data.cifar10 import CLASSES
    from data.cifar100 import NUM_CLASSES
    from data.cifar_archive import SHAPE, TRAIN_SIZE

    for name, classes in {"cifar10": len(CLASSES), "cifar10_jpeg": len(CLASSES), "cifar100": NUM_CLASSES}.items():
        section = compose([f"dataset={name}"])["dataset"]
        assert inputs(section) == Inputs(SHAPE, classes, TRAIN_SIZE)


# What the tables ask for


def write_table(papers: Path, **more: Any) -> None:
    table = {
        "title": "T",
        "metric": "test/accuracy",
        "direction": "up",
        "seeds": [0],
        "overrides": ["experiment=demo/digits"],
        "rows": [
            {"id": "a", "title": "A"},
            {"id": "again", "title": "Again", "overrides": ["method.momentum=0.5"], "needs": ["method=unheard_of"]},
            {"id": "knob", "title": "Knob", "overrides": ["method.x=???"], "target": {"metric": "m", "value": 1}},
        ],
        "columns": [{"id": "one", "title": "One"}],
    }
    path = papers / "toy" / "table.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**table, **more}))


def test_only_cells_that_compose_today_ask_and_parents_with_them(tmp_path: Path) -> None:
    write_table(tmp_path)
    assert [each["in_shape"] for each in wanted(tmp_path)] == [[1, 8, 8]]
    write_table(tmp_path, overrides=["experiment=demo/digits", "start={parent:['model.hidden=[7]']}"])
    assert sorted(each["model"]["hidden"] for each in wanted(tmp_path)) == [[7], [300, 100]]


def test_figures_with_cells_of_their_own_ask_too(tmp_path: Path) -> None:
    write_table(tmp_path)
    path = tmp_path / "toy" / "figures" / "one.yaml"
    path.parent.mkdir()
    fields = yaml.safe_load((tmp_path / "toy" / "table.yaml").read_text())
    path.write_text(yaml.safe_dump({**fields, "plot": "points", "overrides": ["dataset=mnist"]}))
    (path.parent / "two.yaml").write_text(yaml.safe_dump({"title": "T", "plot": "points", "table": "toy/table"}))
    assert [each["in_shape"] for each in wanted(tmp_path)] == [[1, 28, 28], [1, 8, 8]]


def test_records_are_written_where_they_differ_and_removed_where_nobody_asks(tmp_path: Path) -> None:
    asked = request(compose(["experiment=demo/digits"]))
    assert asked is not None
    (tmp_path / "old.json").write_text("{}")
    (tmp_path / "inputs.yaml").write_text("")
    assert records.write([asked], tmp_path) == ([asked["file"]], ["old.json"])
    assert records.write([asked], tmp_path) == ([], [])
    assert (tmp_path / asked["file"]).read_text() == (FOLDER / asked["file"]).read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inputs.yaml", asked["file"]]


def test_the_command_line_writes_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = request(compose(["experiment=demo/digits"]))
    monkeypatch.setattr(records, "wanted", lambda: [asked])
    monkeypatch.setattr(records.write, "__defaults__", (tmp_path,))
    assert main(["--tables"]) == 0
    assert "1 architecture(s), 1 of them new or changed." in capsys.readouterr().out
    for wrong in ([], ["wrn_28_2", "--tables"]):
        with pytest.raises(SystemExit):
            main(wrong)


def test_what_the_tables_ask_for_comes_without_torch(every: list[dict[str, Any]]) -> None:
    code = (
        "import sys; from results import architecture; from runner.compose import compose; "
        "architecture.facts(compose(['experiment=demo/digits'])); assert architecture.main() == 0; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == every


# Stages


def told(model: str, in_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, *given: str) -> dict[str, Any]:
    return stages(section(model, given), in_shape, classes)


def test_stages_of_a_residual_network_are_those_of_its_layers() -> None:
    small = told("resnet18_cifar")
    assert small == told(
        "resnet18_cifar", (3, 32, 32), 10, "model.width=0.65"
    )  # multiples of the factor, whatever it is
    blocks = ["[64ρ, 64ρ] × 2", "[128ρ, 128ρ] × 2", "[256ρ, 256ρ] × 2", "[512ρ, 512ρ] × 2"]
    assert [small[f"block{number}"] for number in range(1, 5)] == blocks
    assert (small["stem"], small["stem_kernel"], small["stem_stride"], small["linear"]) == ("64", 3, 1, "10")
    assert (small["pool"], small["pool_kernel"]) == ("avg-pool", 4) and "stem_pool" not in small
    wide = told("wide_resnet50_2", (3, 64, 96), 7)
    assert (wide["block1"], wide["block3"]) == ("[128ρ, 128ρ, 256ρ] × 3", "[512ρ, 512ρ, 1024ρ] × 6")
    assert wide["stem_pool"] == "max-pool (3 × 3, stride 2, padding 1)" and wide["linear"] == "7"


def test_stages_of_plain_and_recurrent_networks() -> None:
    blocks = {"block1": "64ρ, 64ρ, max-pool", "block2": "128ρ, 128ρ, max-pool", "block3": "256ρ, 256ρ, max-pool"}
    assert told("conv6", (3, 32, 32), 7, "model.width=0.25") == {**blocks, "linear": "256ρ, 256ρ, 7"}
    assert told("lenet_300_100", (1, 28, 28)) == {"linear": "300, 100, 10"}
    assert told("bilstm", (20, 9), 2) == {"linear": "1", "output": "sigmoid"}
    assert told("lstm", (20, 9), 3) == {"linear": "3", "output": "softmax"}
    assert told("resnet20") == {}  # no paper prints its stages


def test_expressions_read_stages_where_there_are_any() -> None:
    read = Settings(read="{architecture.stages.stem}, {architecture.stages.block1}", number="plain")
    assert hyperparameters.text(read, compose(["experiment=iterand/cifar10"])) == "64, [64ρ, 64ρ] × 2"
    with pytest.raises(Misuse, match=r"no 'architecture\.stages\.stem'"):
        hyperparameters.text(read, compose(["experiment=demo/digits"]))


def test_networks_of_texts_have_records_under_a_profile_that_cuts_texts(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_tables.main(["iterand/table11", "--profile", "short_text"]) == 0
    assert "profile short_text" in capsys.readouterr().out
