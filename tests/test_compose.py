"""Composition: overrides to one resolved configuration, and what bad overrides get."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from methods.schedules import EpochRanges, Epochs, is_epoch_field, is_epoch_ranges
from runner import hydra_groups
from runner.compose import CONF, compose, groups, identify, names
from runner.errors import Misuse
from runner.experiment import Schedule, validate
from runner.identity import key


def test_groups_are_composed_and_dotted_overrides_merged() -> None:
    config = compose(["experiment=dsr/lenet_mnist", "method=dsr", "method.sparsity=0.95", "seed=3"])
    assert config["dataset"]["name"] == "mnist"
    assert config["method"]["sparsity"] == 0.95
    assert config["method"]["count"] == 600
    assert config["schedule"]["batch_size"] == 100
    assert config["seed"] == 3


def test_a_method_gets_its_papers_values_only_under_the_papers_experiment() -> None:
    assert compose(["experiment=dsr/wrn_cifar10", "method=set"])["method"]["count"] == 20_000
    assert compose(["method=set"])["method"]["count"] == 600


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=dsr/lenet_mnist", "method=dsr", "method.sparsity=0.95", "schedule.optimizer.momentum=0.8"],
        ["method=set", "model=lenet_300_100", "model.hidden=[20,10]", "seed=4"],
        [
            "experiment=demo/digits",
            "method=gmp",
            "dataset.mean=[0.1]",
            'schedule.lr="1:40 -> 0.3"',
            "task=classification",
        ],
    ],
)
def test_composition_equals_a_full_hydra_compose(overrides: list[str]) -> None:
    assert same(compose(overrides), by_hydra(overrides))


def by_hydra(overrides: Sequence[str]) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = hydra_compose("config", [*hydra_groups.search_path(), *overrides])
        return OmegaConf.to_container(found, resolve=True)


def same(one: Any, other: Any) -> bool:
    """Equal to the types of numbers and the order of keys."""
    return repr(one) == repr(other)


def recipes(method: str) -> list[str]:
    """The experiments that say something of a method."""
    return [name for name in names("experiment") if any((CONF / "experiment" / name).rglob(f"{method}.yaml"))]


EVERYWHERE = [pytest.param(False, id="recipes"), pytest.param(True, id="everywhere", marks=pytest.mark.slow)]


@pytest.mark.parametrize("everywhere", EVERYWHERE)
@pytest.mark.parametrize("method", names("method"))
def test_the_files_are_merged_as_hydra_merges_them(method: str, everywhere: bool) -> None:
    for experiment in (None, *(names("experiment") if everywhere else recipes(method))):
        overrides = [f"method={method}"] if experiment is None else [f"experiment={experiment}", f"method={method}"]
        assert hydra_groups._plain_groups(tuple(overrides)) is not None, "this would only compare Hydra with itself"
        assert same(hydra_groups.resolve(overrides), by_hydra(overrides))


@pytest.mark.parametrize("group", [g for g in groups() if g not in ("experiment", "method")])
def test_every_option_is_merged_as_hydra_merges_it(group: str) -> None:
    for name in names(group):
        assert hydra_groups._plain_groups((f"{group}={name}",)) is not None
        assert same(hydra_groups.resolve([f"{group}={name}"]), by_hydra([f"{group}={name}"]))


VALUES = [
    *("3", "0.25", "1e-3", "-7", "true", "null", "text", "'a text'", "[1,2]", "[]", "{a: 1}", "{}", "nan", "inf"),
    *("${seed}", "${oc.env:HOME}", "'${seed}'", "\\\\${seed}", "???", "'???'", "a$b", "{momentum: 0.5}"),
    *("{momentum: null}", "{a: {b: [1, {c: 2}]}}", "{parent: [method=dense]}", "[${seed}]", "{a: ???}", "int(3.7)"),
]
KEYS = [
    *("method.sparsity", "schedule.optimizer", "schedule.optimizer.momentum", "dataset.mean", "start", "seed", "runs"),
    *("data.root", "data", "start.take", "task.name", "schedule.lr.x", "dataset.mean.0", "nothing", "model.hidden"),
    *("method.nothing", "profile.stretch", "hydra.job", "schedule.lr"),
]
CHOICES = ["method=set", "method=compressed", "experiment=dsr/lenet_mnist", "dataset=mnist"]


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from(CHOICES), max_size=2),
    st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)).map("=".join), max_size=3),
)
def test_dotted_overrides_are_merged_as_omegaconf_merges_them(chosen: list[str], dotted: list[str]) -> None:
    try:
        parsed = [hydra_groups.parse(text) for text in dotted]
    except Misuse:
        return
    lines = tuple(sorted({text.partition("=")[0]: text for text in chosen}.values()))
    try:
        expected: Any = hydra_groups.resolve_by_omegaconf(lines, parsed)
    except Misuse as error:
        expected = str(error)
    try:
        found: Any = hydra_groups.resolve([*chosen, *dotted])
    except Misuse as error:
        found = str(error)
    assert same(found, expected)


def test_what_is_not_plain_is_left_to_omegaconf() -> None:
    assert compose(["schedule.epochs=${seed}", "seed=50"])["schedule"]["epochs"] == 50
    with pytest.raises(Misuse, match="does not resolve"):
        compose(["schedule.epochs=${nothing}"])
    with pytest.raises(Misuse, match="does not resolve"):
        compose(["schedule.epochs=???"])


def test_the_environment_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGROW_RUNS", "/one")
    assert compose([])["runs"] == "/one"
    monkeypatch.setenv("REGROW_RUNS", "null")
    assert compose([])["runs"] == by_hydra([])["runs"]
    monkeypatch.delenv("REGROW_RUNS")
    assert compose([])["runs"] == "runs" and compose(["runs=/two"])["runs"] == "/two"


def test_a_composition_is_ones_own() -> None:
    config = compose(["method=set"])
    config["method"]["keep_dense"].append("changed")
    config["start"] = "changed"
    assert compose(["method=set"])["method"]["keep_dense"] == [] and compose(["method=set"])["start"] is None


def test_a_composition_knows_its_keys() -> None:
    child = identify(["method=compressed", "method.sparsity=0.8"])
    assert child.key == key(child.config)
    assert child.ancestors == (key(compose(["method=dense"])),) == (identify(["method=dense"]).key,)
    grandchild = identify(['start={parent: ["method=compressed"]}'])
    assert grandchild.ancestors == (identify(["method=compressed"]).key, *child.ancestors)
    assert identify([]).ancestors == ()
    with pytest.raises(Misuse):
        identify(["method=dsrr"])


def test_a_configuration_that_json_cannot_hold_composes_too() -> None:
    config = compose(["schedule.gamma=nan"])
    assert config["schedule"]["gamma"] != config["schedule"]["gamma"]
    assert compose(["schedule.gamma=inf"])["schedule"]["gamma"] == float("inf")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("method=dsrr", "there is no method 'dsrr'. Did you mean 'dsr'?"),
        ("methd=dsr", "there is no option 'methd': the configuration has no 'methd'. Did you mean 'method'?"),
        ("schedule.epoch=3", "no option 'schedule.epoch': schedule sgd has no 'epoch'. Did you mean 'epochs'?"),
        ("schedule.optimizer.x=3", "schedule.optimizer has no 'x'. Valid: _target_, "),
        ("sparsity=0.9", "the configuration has no 'sparsity'. Did you mean 'method.sparsity'?"),
        ("epochs=3", "the configuration has no 'epochs'. Did you mean 'schedule.epochs'?"),
        ("mode=3", "the configuration has no 'mode'. Did you mean 'model'?"),
        ("experiment=dsr/lenet_mnits", "Did you mean 'dsr/lenet_mnist'?"),
        ("schedule", "is not an override"),
        ("experiment=null", "experiment=null is no choice; leave it out"),
        ("+model.depth=3", "only key=value is possible here"),
        ("method=dsr,set", "only key=value is possible here"),
        ("schedule.optimizer=3", "schedule.optimizer is a section"),
        ("model.hidden={a: 1}", "model.hidden cannot be {'a': 1}: Cannot merge DictConfig with ListConfig"),
        ("profile.stretch=0", "profile.stretch = 0 should be a number above 0"),
        ('schedule.lr="1:20 -> 0.1, 22:40 -> 0.2"', "should begin at epoch 21"),
        ('schedule.lr="1:20 -> 0.1"', "schedule.lr ends at epoch 20, but the run has 40"),
        ("start={parent: 3}", "start.parent should be the list of overrides"),
        ("start={parent: [3]}", "start.parent should be the list of overrides"),
        ("start={parent: [], tak: mask}", "Did you mean 'take'?"),
        ("start={parent: [], take: masks}", "start.take = 'masks' should be one of weights, mask, weights_and_mask"),
        ("start={parent: [], checkpoint: 3}", "start.checkpoint = 3 should be last, or a name that"),
    ],
)
def test_bad_overrides_get_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(Misuse) as misuse:
        compose([override])
    assert sentence in str(misuse.value)
    assert "\n" not in str(misuse.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["method=set", "method.sparsity=1.2"], "method.sparsity = 1.2 should be in the range 0 <= x < 1."),
        (["method=set", "method.sparsity=dense"], "method.sparsity = 'dense' should be a number."),
        (["method=set", "method.allocation=erdos"], "should be one of uniform, erk"),
        (["method=dsr", 'method.period="1:40 -> 0"'], "method.period = '1:40 -> 0' should be"),
        (["method=gmp", "method.iterations=100"], "lies after the run's end at epoch 40"),
        (["method=gmp", "method.allocation=global", "method.layer_floor=3"], "layer_floor needs allocation"),
        (["schedule.epochs=0"], "schedule.epochs = 0 should be in the range 1 <= x."),
        (["schedule.lr=-0.1"], "schedule.lr = -0.1 should be"),
        (
            ["schedule.optimizer={momentm: 0.9}"],
            "there is no option 'schedule.optimizer.momentm'. Did you mean 'momentum'?",
        ),
        (["schedule.warmup_epochs=40"], "schedule.warmup_epochs = 40 should be below schedule.epochs"),
        (
            ["schedule.optimizer._target_=os.system"],
            "schedule.optimizer._target_ = 'os.system' should name something in",
        ),
        (["method._target_=methods.set.SETT"], "cannot be found: methods.set has no 'SETT'. Did you mean 'SET'?"),
        (["method._target_=methods.st.SET"], "cannot be found: methods has no module 'st'. Did you mean 'str'?"),
        (["method._target_=null"], "method._target_ is missing; it should name something in runner., methods., "),
        (["model._target_=methods.set.SET"], "makes no model: it should be a class on torch.nn."),
        (
            ["method._target_=models.lenet.lenet_300_100"],
            "makes no method: it should be a class on methods.base.Method",
        ),
        (["precision=fp8"], "precision = 'fp8' should be one of"),
        (["seed=-1"], "seed = -1 should be a whole number"),
        (["trainer.threads=0"], "trainer.threads = 0 should be in the range 1 <= x."),
        (["task.label_smoothing=1"], "task.label_smoothing = 1 should be in the range 0 <= x < 1."),
        (["model.batch_norm=some"], "model.batch_norm = 'some' should be one of none, hidden, all"),
        (["method=compressed", 'start.parent=["method=set","method.sparsity=2"]'], "method.sparsity = 2 should be in"),
        (
            ["start={parent: [], checkpoint: best}"],
            "start.checkpoint = 'best' should be one that method dense keeps: last",
        ),
    ],
)
def test_values_that_do_not_fit_fail_before_anything_starts(overrides: list[str], sentence: str) -> None:
    with pytest.raises(Misuse) as misuse:
        validate(compose(overrides))
    assert sentence in str(misuse.value)
    assert "\n" not in str(misuse.value)


def test_a_stage_embeds_its_parent_which_inherits_all_but_method_schedule_and_start() -> None:
    child = compose(
        ["experiment=dsr/lenet_mnist", "method=compressed", "method.sparsity=0.98", "model.hidden=[50,20]", "seed=2"]
    )
    parent = child["start"]["parent"]
    assert parent["method"]["name"] == "dense"
    assert parent["model"]["hidden"] == [50, 20]
    assert parent["schedule"]["epochs"] == 100
    assert child["schedule"]["epochs"] == 40
    assert "seed" not in parent and "trainer" not in parent


def test_a_profile_stretches_every_epoch_valued_field_of_run_and_parent() -> None:
    config = compose(["experiment=dsr/lenet_mnist", "method=compressed", "profile=tenth"])
    assert config["schedule"]["epochs"] == 4
    assert config["method"]["every_epochs"] == pytest.approx(0.2)
    assert config["schedule"]["lr"] == "1:2 -> 0.02, 3:3 -> 0.004, 4:4 -> 0.0008"
    assert config["start"]["parent"]["schedule"]["epochs"] == 10
    dsr = compose(["experiment=dsr/lenet_mnist", "method=dsr", "profile=tenth"])
    assert dsr["method"]["period"] == "1:3 -> 100, 4:5 -> 200, 6:8 -> 400, 9:10 -> 800"


def test_smoke_also_uses_a_subset() -> None:
    assert compose(["profile=smoke"])["dataset"]["train_subset"] == 1000
    assert compose([])["dataset"]["train_subset"] is None


@pytest.mark.parametrize("everywhere", EVERYWHERE)
def test_every_experiment_composes_and_validates_with_every_method(everywhere: bool) -> None:
    """Or is told that it is too short for a method's own ramps and prunings, which are over by epoch 25."""
    for method in names("method"):
        for experiment in names("experiment") if everywhere else recipes(method):
            chosen = [f"experiment={experiment}", f"method={method}"]
            config = compose(chosen)
            try:
                validate(config)
            except Misuse as misuse:
                assert config["schedule"]["epochs"] < 25 and "the run's" in str(misuse), (chosen, str(misuse))


@pytest.mark.parametrize("group", [g for g in groups() if g != "experiment"])
def test_every_option_of_every_group_composes_and_validates(group: str) -> None:
    for name in names(group):
        config = compose([f"{group}={name}"])
        validate(config)
        assert config[group]["name"]
        if group in ("model", "dataset", "method", "task"):
            assert config[group]["revision"] >= 1


def test_epoch_valued_fields_are_named_so_that_stretch_finds_them() -> None:
    """What the naming rule takes for epochs, of every method and of the schedule, has the type `Epochs`."""
    from typing import get_type_hints

    from runner.build import locate

    kinds: list[type] = [Schedule]
    for name in names("method"):
        target = locate(compose([f"method={name}"])["method"]["_target_"], "method")
        assert isinstance(target, type)
        kinds.append(target)
    for kind in kinds:
        for field, hint in get_type_hints(kind, include_extras=True).items():
            if is_epoch_field(field) and field != "epochs":  # a whole number
                assert hint in (Epochs, list[Epochs]), (kind, field)


def test_epoch_ranges_in_configs_are_recognised() -> None:
    config = compose(["experiment=dsr/lenet_mnist", "method=deepr"])
    assert is_epoch_ranges(config["method"]["temperature"])
    assert EpochRanges.parse(config["method"]["temperature"]).at(14) == 1e-8


def test_planning_imports_no_torch() -> None:
    code = "import sys; from runner.compose import compose; from runner.identity import key; key(compose([])); "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], cwd=CONF.parent)
    assert done.returncode == 0


def test_short_is_twenty_epochs_of_the_first_stage_and_all_of_it_is_in_the_key() -> None:
    given = ["experiment=dpf/cifar10", "method=oneshot"]
    full, short = compose(given), compose([*given, "profile=short"])
    parent = short["start"]["parent"]
    assert parent["schedule"]["epochs"] == 20 and parent["schedule"]["milestones"] == [10, 15]  # of 300, 150 and 225
    assert short["schedule"]["epochs"] == 4 and short["schedule"]["milestones"] == [2, 3]  # of 60, 30 and 45
    for config in (short, parent):
        assert (config["precision"], config["memory_format"]) == ("bf16", "channels_last")
        assert config["dataset"]["train_subset"] == 20000
    parts = [["schedule.epochs=4"], ["precision=bf16"], ["memory_format=channels_last"], ["dataset.train_subset=20000"]]
    assert len({key(compose([*given, *part])) for part in ([], *parts)}) == 5
    assert compose([*given, "profile=short", "precision=fp32"])["precision"] == "fp32"
    assert compose(["schedule.epochs=7", "profile=short"])["schedule"]["epochs"] == 7 != full["schedule"]["epochs"]


def test_a_profile_that_says_neither_epochs_nor_a_factor_is_refused() -> None:
    for text, says in (
        ("profile.stretch=null", "a profile should say either epochs or stretch."),
        ("profile.epochs=-1", "profile.epochs = -1 should be a number above 0."),
        ("memory_format=channels", "memory_format = 'channels' should be one of contiguous, channels_last."),
    ):
        with pytest.raises(Misuse) as raised:
            validate(compose([text]))
        assert str(raised.value) == says
