"""These tests check that settings are resolved once, frozen, in sections, and what one flag says about another."""

import copy
import json

import pytest

from settings import arguments
from settings.arguments import Settings, method, parse
from settings.errors import Refused
from settings.flags import FLAGS, SECTIONS, defaults
from settings.registry import PROCEDURES, REGULARIZERS, Entry
from settings.rules import recipe_without_effect
from settings.signatures import Option

pytestmark = pytest.mark.core


@pytest.fixture
def _procedures(monkeypatch):
    """The two procedures that the flags know by name."""
    entries = {"once": {}, "scratch": {"model": Option(required=True)}}
    for name, options in entries.items():
        if name not in PROCEDURES.entries:
            entry = Entry(name, f"training.procedures.{name}", name, "", "procedure", options)
            monkeypatch.setitem(PROCEDURES.entries, name, entry)


def test_assignment_raises():
    settings = parse(["--epochs", "3"])
    assert settings.training.epochs == 3
    for target, name in ((settings, "epochs"), (settings.training, "epochs"), (settings, "training"), (settings, "new")):
        with pytest.raises(AttributeError, match=f"settings are resolved once: {name} cannot be assigned"):
            setattr(target, name, 4)
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del settings.training.epochs
    settings.flat["epochs"] = 4  # a dict of its own
    assert settings.training.epochs == settings.flat["epochs"] == 3
    assert copy.deepcopy(settings).flat == settings.flat


def test_every_flag_is_read_in_its_section_alone():
    settings = parse([])
    assert set(settings.flat) == set(FLAGS)
    for name, flag in FLAGS.items():
        having = [section for section in SECTIONS if hasattr(getattr(settings, section), name)]
        assert having == [flag.section]
        assert settings.flat[name] is getattr(getattr(settings, flag.section), name)
    with pytest.raises(AttributeError, match="has no attribute 'epochs'"):
        _ = settings.epochs


def test_replace_makes_new_settings():
    settings = parse(["--lr", "0.1"])
    other = settings.replace(device="cpu", epochs=1)
    assert (other.engine.device, other.training.epochs, other.training.lr, other.typed) == ("cpu", 1, 0.1, {"lr": 0.1})
    assert (settings.engine.device, settings.training.epochs) == (None, 300)
    with pytest.raises(AttributeError, match="there is no setting 'epoch'"):
        settings.replace(epoch=1)


def test_the_method_is_what_is_computed():
    settings = parse([])
    assert "epochs" not in method(settings)
    assert {"seed", "lr", "procedure", "optimizer", "channels", "arch"} <= method(settings).keys()
    assert method(settings).keys().isdisjoint({"device", "amp", "compact", "quiet", "evaluate", "recipe"})


@pytest.mark.parametrize("name", REGULARIZERS.entries)
def test_odecay_is_the_weight_in_force(name):
    default = REGULARIZERS.entries[name].options["weight"].default
    assert parse(["--reg", name]).training.odecay == default
    assert parse(["--reg", name, "--odecay", "0.5"]).training.odecay == 0.5
    assert parse(["--reg", f"{name}(weight=0.25)"]).training.odecay == 0.25
    assert parse(["--reg", f"{name}(weight=0.25)", "--odecay", "0.25"]).training.odecay == 0.25
    # typed wins over the recipe's
    if "learned scales" in REGULARIZERS.entries[name].traits:
        return  # beside the recipe's masks there is no place for them
    assert parse(["--recipe", "paper", "--reg", f"{name}(weight=0.25)"]).training.odecay == 0.25
    bound = REGULARIZERS.get(f"{name}(weight=0.25)", weight=0.25)
    assert bound.keywords == {"weight": 0.25}


def test_there_is_no_weight_without_a_penalty():
    assert parse([]).training.odecay == 0.0
    assert parse(["--recipe", "paper", "--reg", "none"]).training.odecay == 0.0


@pytest.mark.usefixtures("_procedures")
def test_scratch_is_short_for_a_procedure(tmp_path):
    (tmp_path / "model.pt").touch()
    model = str(tmp_path / "model.pt")
    long = f"scratch(of={model!r})"
    short = parse(["--scratch", model])
    assert (short.run.procedure, short.network.scratch) == (long, model)
    both = parse(["--scratch", model, "--procedure", long])
    typed = parse(["--procedure", long])
    assert both.flat == typed.flat == short.flat
    assert parse(["--procedure", "once"]).run.procedure == parse([]).run.procedure == "once"
    with pytest.raises(Refused, match="unknown procedure 'twice': "):
        parse(["--procedure", "twice"])


@pytest.mark.usefixtures("_procedures")
def test_a_run_of_before_goes_on_with_its_procedure(tmp_path):
    """Its record has no flag of today that it did not know."""
    new = ("procedure", "optimizer", "channels")
    for scratch, procedure in ((None, "once"), ("m.pt", "scratch(of='m.pt')")):
        saved = {name: value for name, value in defaults().items() if name not in new}
        saved |= {"arch": "resnet20", "scratch": scratch, "epochs": 2, "typed": {"epochs": 2}, "of_old": 1}
        (tmp_path / "config.json").write_text(json.dumps({"settings": saved}))
        settings = parse(["--resume", str(tmp_path), "--epochs", "3", "--quiet"])
        assert (settings.run.procedure, settings.network.scratch) == (procedure, scratch)
        assert (settings.training.optimizer, settings.data.channels) == ("sgd", 3)
        assert (settings.training.epochs, settings.run.quiet, settings.typed) == (3, True, {"epochs": 2})
        assert parse(["--resume", str(tmp_path), "--optimizer", "sgd"]).training.optimizer == "sgd"
        with pytest.raises(Refused, match=r"--procedure .* contradicts the run"):
            parse(["--resume", str(tmp_path), "--procedure", "scratch(of='other.pt')"])


def test_a_run_begun_quietly_goes_on_aloud(tmp_path):
    saved = defaults() | {"arch": "resnet20", "typed": {"quiet": True}, "quiet": True}
    (tmp_path / "config.json").write_text(json.dumps({"settings": saved}))
    assert not parse(["--resume", str(tmp_path)]).run.quiet
    assert parse(["--resume", str(tmp_path), "--quiet"]).run.quiet


@pytest.mark.parametrize("name", [name for name in FLAGS if FLAGS[name].on_resume == "any" and name != "resume"])
def test_what_may_change_on_the_way_may_be_typed(tmp_path, name):
    saved = defaults() | {"arch": "resnet20", "typed": {}, "prune_type": "structured", "compact": True, "finetune_epochs": 1}
    saved |= {} if name == "export" else {"export": ["m.pt2"]}
    (tmp_path / "config.json").write_text(json.dumps({"settings": saved}))
    flag = FLAGS[name]
    values = {
        "device": "cpu",
        "export": str(tmp_path / "m.pt2"),
        "export_input": "normalised",
        "form": "deep_compression",
        "data_dir": "there",
    }
    value = values.get(name, "3")
    settings = parse(["--resume", str(tmp_path), f"--{name}", *([] if flag.action else [value])])
    assert settings.flat[name] not in (flag.default, None)


def test_a_wrong_trait_is_one_line(monkeypatch):
    def broken():
        raise ValueError("pruning.criteria.mine.mine, context: unknown trait 'reads image'")

    monkeypatch.setattr(arguments, "build_parser", broken)
    with pytest.raises(Refused, match="unknown trait 'reads image'"):
        parse([])


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--prune_typ", "did you mean '--prune_type'?"),
        ("--batch-size", "did you mean '--batch_size'?"),
        ("--Epochs", "did you mean '--epochs'?"),
        ("--lr_scheduler", "did you mean '--lr_schedule'?"),
        ("--no_compil", "did you mean '--no_compile'?"),
        ("--preci", "--help lists all of them"),
        ("--weight", "did you mean '--weight_decay'?"),
        ("--prune", "--help lists all of them"),  # it begins many
        ("--mosaic", "--help lists all of them"),
        ("--workers", "--help lists all of them"),
        ("--dropout", "--help lists all of them"),
    ],
)
def test_an_unknown_flag_is_led_only_to_one_that_is_near(word, told):
    with pytest.raises(Refused) as caught:
        parse([word, "1"])
    assert str(caught.value) == f"unknown argument '{word}': {told}"


def test_settings_are_whole():
    with pytest.raises(KeyError):
        Settings({"epochs": 3}, {})


@pytest.mark.parametrize(("flags", "schedule"), [
    (["--recipe", "dpf", "--rounds", "3"], "cubic(reach=0.75)"),
    (["--recipe", "best", "--prune_phase", "iterative"], "cubic"),
    (["--recipe", "sfp", "--prune_gate", "output", "--rounds", "3"], "linear"),
    (["--recipe", "dpf", "--rounds", "3", "--prune_schedule", "linear"], "linear"),
])  # fmt: skip
def test_rounds_keep_the_schedule_of_a_recipe(flags, schedule):
    assert parse(flags).pruning.prune_schedule == schedule


def test_the_weight_of_a_recipe_is_that_of_its_own_penalty():
    for flags, weight in (([], 0.7), (["--reg", "reg_cov"], 0.7), (["--reg", "l1"], 1e-5), (["--reg", "l1(weight=0.1)"], 0.1)):
        assert parse(["--recipe", "paper", *flags]).training.odecay == weight


def test_what_a_recipe_says_without_effect_is_named():
    for flags, idle in (
        (["dpf"], []),
        (["dpf", "--rounds", "3"], ["--prune_freq"]),
        (["best", "--prune_phase", "init"], ["--prune_schedule"]),
        (["dpf", "--prune_phase", "init"], ["--prune_freq", "--prune_schedule", "--prune_until"]),
    ):
        assert sorted(recipe_without_effect(parse(["--recipe", *flags]))) == idle


def test_a_procedure_brings_its_penalty_and_mask_unless_a_recipe_says_otherwise():
    plain = parse(["--procedure", "multilayer"])
    assert (plain.training.reg, plain.training.odecay, plain.pruning.prune_gate) == ("l1", 1e-5, "output")
    for typed, named in (([], "prune_gate"), (["--prune_gate", "output"], "reg")):
        with pytest.raises(Refused, match=rf"^--recipe paper says --{named} .*: type --{named} as it is meant$"):
            parse(["--recipe", "paper", "--procedure", "multilayer", *typed])
    both = parse(["--recipe", "paper", "--procedure", "multilayer", "--prune_gate", "output", "--reg", "l1"])
    assert (both.training.reg, both.training.odecay, both.pruning.prune_gate) == ("l1", 1e-5, "output")
    assert parse(["--recipe", "slimming"]).training.reg == "bn_l1"  # whose procedure is its own


@pytest.mark.parametrize("flag", ["--prune_rate", "--epochs", "--widths", "--recipe", "--arch"])
def test_two_dashes_are_no_value(flag):
    with pytest.raises(Refused, match=r"--"):
        parse([f"{flag}=--"])
