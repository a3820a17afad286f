"""Each procedure trains and resumes, and its plan is plain data that the settings alone decide."""

import json

import pytest
from conftest import run_program
from promises import PRUNED, STEPS, trains_and_resumes, unchanged

from settings.arguments import parse
from settings.registry import ACTIONS, PROCEDURES
from training.earlier_tickets import with_tickets
from training.stages import plan_of

pytestmark = pytest.mark.core


@pytest.fixture
def smaller(tmp_path, monkeypatch):
    """A model.pt whose filters have been taken out."""
    monkeypatch.chdir(tmp_path)
    run_program(*STEPS, "--layers", "20", "--epochs", "1", *PRUNED, "--compact", "--out_dir", "smaller")
    return tmp_path / "smaller" / "model.pt"


@pytest.fixture
def ticket(tmp_path, monkeypatch):
    """The folder of a run of one round."""
    monkeypatch.chdir(tmp_path)
    flags = ["--layers", "20", "--prune_type", "unstructured", "--procedure", "rounds(n=1, fraction=0.3)", "--epochs", "1"]
    run_program(*STEPS, *flags, "--out_dir", "ticket")
    return tmp_path / "ticket"


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    """The folder of a dense run."""
    monkeypatch.chdir(tmp_path)
    run_program(*STEPS, "--layers", "20", "--epochs", "1", "--out_dir", "teacher")
    return tmp_path / "teacher"


@pytest.fixture(params=PROCEDURES.entries)
def procedure(request):
    """The flags that choose a procedure. One that needs an option or another flag needs an entry here."""
    if "repairs layer by layer" in PROCEDURES.entries[request.param].traits:
        cut = [*PRUNED, "--prune_phase", "after", "--prune_until", "0.5", "--reconstruct", "least_squares(rows=600, images=54)"]
        return [*cut, "--procedure", f"{request.param}(epochs=0)", "--layers", "20", "--lr", "0.05"]
    if request.param == "multilayer":  # of two epochs each round needs two
        return ["--procedure", "multilayer(rounds=1)", "--layers", "20"]
    if request.param == "rounds":
        return ["--prune_type", "unstructured", "--procedure", "rounds(n=1, fraction=0.3)", "--layers", "20"]
    if request.param == "control":
        run = request.getfixturevalue("ticket")
        return ["--prune_type", "unstructured", "--procedure", f"control(of={str(run)!r})", "--layers", "20"]
    for loss in PROCEDURES.entries[request.param].traits.get("begins by", ()):
        taught = ["--teacher", str(request.getfixturevalue("teacher")), "--distill", f"{loss} + KD"]
        return [*taught, "--procedure", f"{request.param}(hint=0.5)", "--layers", "20"]
    if request.param == "connectivity":
        return ["--procedure", "connectivity(points=2)", "--layers", "20"]
    if "unlabelled images" in PROCEDURES.entries[request.param].traits:
        return ["--procedure", f"{request.param}(generations=1)", "--labelled", "0.4", "--layers", "20"]
    if "removes" in PROCEDURES.entries[request.param].traits:
        return [*PRUNED, "--procedure", request.param, "--reg", "bn_l1", "--layers", "20"]
    if all(not option.required for option in PROCEDURES.entries[request.param].options.values()):
        return ["--procedure", request.param, "--layers", "20"]
    model = request.getfixturevalue("smaller")
    return {"scratch": ["--procedure", f"scratch(of={str(model)!r})"]}[request.param]


def test_it_trains_and_resumes(tmp_path, monkeypatch, procedure):
    trains_and_resumes(tmp_path, monkeypatch, *procedure, network=None)


def test_its_plan_is_plain_data_from_the_settings_alone(procedure):
    settings = with_tickets(parse([*STEPS, *procedure]))  # which a run fills in as it begins
    with unchanged():
        plan = plan_of(settings)
    record = plan.record()
    assert json.loads(json.dumps(record)) == json.loads(json.dumps(plan_of(settings).record()))
    assert plan.epochs >= 1
    for stage in plan.stages:
        for action in stage.enter:
            ACTIONS.check(action)
