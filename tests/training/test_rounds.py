"""These tests hold rounds of pruning, their controls and their copies to what the papers say of them."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY_DATA, TwoBlocks, run_program
from promises import STEPS, trains_and_resumes

import modeling
import models
from pruning.removal import Removal
from settings.arguments import parse
from settings.errors import Refused
from settings.registry import LEARNING_RATES
from training.stages import Stage, position
from training.tickets import cut_round, other_masks, put_masks, put_weights, rewind_to, shuffled, state_of, unpacked, weights_of

pytestmark = pytest.mark.core

WEIGHTS = ["--prune_type", "unstructured"]
FLAGS = [*TINY_DATA, "--batch_size", "27", "--quiet", "--deterministic", *WEIGHTS]


@pytest.fixture
def _small(monkeypatch):
    """Whatever the flags name, the network is a small one."""
    monkeypatch.setattr(models, "build", lambda _, classes=10, **__: TwoBlocks(classes=classes))


def rounds(**options) -> str:
    return f"rounds({', '.join(f'{name}={value!r}' for name, value in options.items())})"


def saved(folder: str) -> dict:
    return torch.load(Path(folder, "checkpoint.pt"), weights_only=True)


def summary(folder: str) -> dict:
    return json.loads(Path(folder, "summary.json").read_text())


def kept(run) -> dict:
    return {name: gate.decide().clone() for name, gate in run.pruner.gates.items()}


@pytest.mark.usefixtures("_small")
def test_a_dry_run_refuses_a_place_that_the_run_would_not_have():
    for place in ("2ep", "99it"):
        for flags in ([], ["--dry_run"]):
            asked = parse([*FLAGS, "--epochs", "2", "--procedure", rounds(n=1, to=place), *flags])
            with pytest.raises(Refused, match=f"the stage round 0 has no step {place}: it has 2 epochs of"):
                modeling.start(asked)


def test_a_stage_that_starts_later_has_the_learning_rates_of_the_whole_one():
    """Of 4 epochs of 10 steps, from step 23 on: the rest of the third epoch and the fourth, bit for bit."""
    schedule = LEARNING_RATES.get("cosine")
    whole = Stage("round 0", 4, 0.1, warmup_epochs=3.0)
    later = Stage("round 1", 4, 0.1, warmup_epochs=3.0, start="23it").fitted(10)
    assert (later.skip, later.epochs) == (23, 2)
    for step in range(23, 40):
        epoch, inside = divmod(step, 10)
        wanted = whole.learning_rate(epoch + inside / 10, 10, schedule)
        assert later.learning_rate(epoch - 2 + inside / 10, 10, schedule) == pytest.approx(wanted, abs=1e-15)
    assert position("3ep", 7) == 21
    with pytest.raises(Refused, match="no step 40it: it has 4 epochs of 10 steps"):
        Stage("round 1", 4, 0.1, start="40it").fitted(10)
    assert Stage("round 1", 4, 0.1, start="39it").fitted(10).epochs == 1


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("to", ["0it", "3it", "1ep"])
def test_survivors_are_what_they_were(to, monkeypatch):
    """After rewinding the network, its statistics and the optimiser are those of the step, bit for bit, and so is its rate."""
    seen, rates, remember, set_rate = {}, {}, modeling.remember, modeling.Experiment.set_learning_rate

    def watched(run, epoch, step):
        remember(run, epoch, step)
        seen.setdefault((run.stage, epoch, step), state_of(run))

    def rated(run, epoch, step):
        set_rate(run, epoch, step)
        rates[run.stage, epoch, step] = run.optimizer.param_groups[0]["lr"]

    monkeypatch.setattr(modeling, "remember", watched)
    monkeypatch.setattr(modeling.Experiment, "set_learning_rate", rated)
    run = modeling.start(parse([*FLAGS, "--epochs", "2", "--procedure", rounds(n=1, to=to)]))
    modeling.train(run, None, [])
    then = divmod(position(to, 2), 2)
    first = min(key for key in seen if key[0] == 1)
    assert first[2] == then[1]
    then, now = seen[(0, *then)], seen[first]
    assert all(torch.equal(value, now["model"][name]) for name, value in then["model"].items())
    for one, other in zip(then["optimizer"]["state"].values(), now["optimizer"]["state"].values(), strict=True):
        assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])
    assert [rate for key, rate in rates.items() if key[0] == 1] == [rate for key, rate in rates.items() if key[0] == 0][
        position(to, 2) :
    ]


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("scope", [[], ["--prune_scope", "deviation"]])
def test_densities_are_exact_and_what_is_cut_stays_cut(scope):
    """In round r floor(n (1 - 0.8^r)) of n weights are gone, of the classifier at half the rate floor(m (1 - 0.9^r))."""
    for classifier in (1.0, 0.5):
        run = modeling.start(parse([*FLAGS, *scope, "--epochs", "1", "--procedure", rounds(n=3, classifier=classifier)]))
        run.pruner.look_at(lambda: [], run.task)
        before, m = kept(run), run.pruner.gates["classifier"].decide().numel()
        n = run.pruner.entries - (m if classifier < 1 else 0)
        for number in (1, 2, 3):
            torch.nn.init.normal_(run.model.get_submodule("stem").weight)
            cut_round(run.pruner, number, 0.2, classifier)
            now = kept(run)
            assert all((before[name] | ~mask).all() for name, mask in now.items())
            gone = {name: int((~mask).sum()) for name, mask in now.items()}
            own = gone["classifier"] if classifier < 1 else 0
            assert sum(gone.values()) - own == int(n * (1 - 0.8**number) + 1e-9)
            assert classifier == 1 or own == int(m * (1 - 0.9**number) + 1e-9)
            before = now


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("rewind", ["weights", "learning_rate", "none"])
def test_a_round_trains_at_its_rate_from_its_weights(rewind):
    asked = [*FLAGS, "--epochs", "2", "--lr", "0.1", "--procedure", rounds(n=1, rewind=rewind, fraction=0.4)]
    run = modeling.start(parse([*asked, *(["--finetune_lr", "0.03"] if rewind == "none" else [])]))
    run.tickets.states["0it"] = state_of(run)
    modeling.train_epoch(run, 0, modeling.tqdm(disable=True))
    trained = weights_of(run.model)
    run.enter(1)
    now, began = weights_of(run.model), run.tickets.states["0it"]["model"]
    wanted = began if rewind == "weights" else trained
    assert all(torch.equal(value, now[name]) for name, value in wanted.items())
    assert not run.optimizer.state
    assert run.learning_rate(2) == pytest.approx(0.03 if rewind == "none" else 0.1)
    assert run.learning_rate(3) == pytest.approx(0.03 if rewind == "none" else 0.01)  # the schedule drops half-way
    assert run.pruner.cut() == int(0.4 * run.pruner.entries)


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("kind", [WEIGHTS, ["--prune_type", "structured"]])
def test_killed_in_a_round_it_ends_alike(tmp_path, monkeypatch, at, kind):
    flags = [*kind, "--procedure", rounds(n=2, fraction=0.3, to="3it")]
    whole = trains_and_resumes(tmp_path, monkeypatch, *flags, at=at)
    assert [row["stage"] for row in whole["rows"]] == ["round 0", "round 0", "round 1", "round 2"]
    densities = [record["density"] for record in summary("whole")["rounds"]]
    assert densities[0] == 1
    assert densities == sorted(densities, reverse=True)
    assert len(whole["tickets"]["masks"]) == 2
    run_program("--resume", "whole", "--quiet")  # it has ended: it says its end again


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": []}, "tickets.masks are 0, not 1"),
        ({"masks": [{"stem": torch.zeros(1)}]}, "of other units"),
        ({"states": {}}, "tickets.states has no 0it"),
        ({"states": {"0it": {"model": {}, "optimizer": {}}}}, "states.0it.model"),
        ({"copies": [{"stem": 1}]}, "tickets.copies"),
        (None, "tickets is .all., not a table"),
    ],
)
def test_what_a_checkpoint_lacks_of_rounds_is_refused(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    run_program(*FLAGS, "--epochs", "1", "--procedure", rounds(n=1), "--out_dir", "run")
    state = saved("run")
    state["tickets"] = "all" if change is None else state["tickets"] | change
    torch.save(state, "run/checkpoint.pt")
    with pytest.raises(Refused, match=message) as caught:
        run_program("--resume", "run", "--recalibrate", "1")
    assert "\n" not in str(caught.value)


@pytest.fixture
def ticket(tmp_path, monkeypatch, _small):
    """The folder of a run of two rounds, rewound to its third step."""
    monkeypatch.chdir(tmp_path)
    run_program(*FLAGS, "--epochs", "2", "--procedure", rounds(n=2, fraction=0.3, to="2it"), "--out_dir", "rounds")
    return "rounds"


@pytest.mark.parametrize("kind", ["random", "shuffle", "reinitialise", "permute_kept", "signed_constant"])
def test_a_control_has_as_many_weights_in_each_layer(ticket, kind):
    """Its masks, and its weights, differ from those of the run as `kind` says, and from round to round."""
    states, masks = [], []
    control = f"control(of={ticket!r}, kind={kind!r})"
    run = modeling.start(parse([*FLAGS, "--epochs", "2", "--procedure", control]))
    for number in (1, 2):
        masks.append(kept(run))
        states.append(weights_of(run.model))
        found = unpacked(run, run.tickets.masks[number - 1])
        assert {name: int(mask.sum()) for name, mask in masks[-1].items()} == {n: int(m.sum()) for n, m in found.items()}
        same_masks = all(torch.equal(mask, found[name]) for name, mask in masks[-1].items())
        assert same_masks == (kind not in ("random", "shuffle"))
        began = saved(ticket)["tickets"]["states"]["2it"]["model"]
        same_weights = all(torch.equal(value, began[name]) for name, value in states[-1].items())
        assert same_weights == (kind in ("random", "shuffle"))
        assert run.now.skip == (0 if kind == "reinitialise" else 2)
        assert bool(run.optimizer.state) == (kind in ("random", "shuffle"))
        run.enter(run.stage + 1)
    nested = all((masks[0][name] | ~mask).all() for name, mask in masks[1].items())
    assert nested == (kind != "shuffle")


def test_a_control_trains_and_resumes(ticket, tmp_path, monkeypatch):
    (tmp_path / "again").mkdir()
    flags = [*WEIGHTS, "--procedure", "control(of='../rounds', kind='shuffle')"]
    trains_and_resumes(tmp_path / "again", monkeypatch, *flags)
    asked = json.loads(Path("whole/config.json").read_text())["settings"]["procedure"]
    assert asked == "control(of='../rounds', kind='shuffle', n=2, to='2it')"
    assert [record["round"] for record in summary("whole")["rounds"]] == [1, 2]


def test_a_mask_that_is_shuffled_moves():
    chance = torch.Generator().manual_seed(0)
    mask = torch.zeros(4, 25, dtype=torch.bool)
    mask[0] = True
    moved = shuffled(mask, chance, within=torch.ones_like(mask))
    assert int(moved.sum()) == 25
    assert (moved & ~mask).any()
    assert not (shuffled(moved[:2], chance, within=mask[:2])[1]).any()


@pytest.mark.parametrize("kind", ["random", "shuffle"])
@pytest.mark.parametrize(
    ("network", "flags"),
    [("resnext11(groups=4, width=2)", []), ("resnet20(shortcut='pad')", ["--residual", "grouped"])],
)
def test_what_is_decided_together_moves_together(kind, network, flags):
    """Groups go as a whole, and a channel from all who write it; each layer has as many filters left, and is really smaller."""
    asked = [*TINY_DATA, "--arch", network, "--batch_size", "27", "--quiet", "--prune_type", "structured", *flags]
    run = modeling.start(parse([*asked, "--epochs", "1", "--procedure", rounds(n=2, fraction=0.3)]))
    run.pruner.look_at(run.sample, run.task)
    cut_round(run.pruner, 1, 0.3, 1.0)
    masks, decisions = kept(run), run.pruner.decisions
    moved = other_masks(kind, masks, run.pruner, torch.Generator().manual_seed(0), 1)
    assert any(not torch.equal(mask, masks[name]) for name, mask in moved.items())
    assert {name: int(mask.sum()) for name, mask in moved.items()} == {name: int(mask.sum()) for name, mask in masks.items()}
    together = decisions.spread(decisions.gather(moved), moved)
    assert all(torch.equal(mask, moved[name]) for name, mask in together.items())
    put_masks(run.pruner, moved)
    Removal(run.model).compact()


@pytest.mark.usefixtures("_small")
def test_scales_that_are_learned_are_rewound_and_mixed(tmp_path, monkeypatch):
    """Copies begin with the scales of the place where they split, as with its weights."""
    flags = [
        "--arch",
        "resnet20",
        "--reg",
        "sss",
        "--odecay",
        "0.1",
        "--procedure",
        "connectivity(split='1it', points=2, batches=2)",
    ]
    whole = trains_and_resumes(tmp_path, monkeypatch, *flags, at=3)
    name = next(name for name in whole["model"] if name.endswith("gate.scale"))
    began, (first,) = whole["tickets"]["states"]["1it"]["model"], whole["tickets"]["copies"]
    assert not torch.equal(began[name], first[name])
    run = modeling.start(parse([*STEPS, "--epochs", "2", *flags]))
    run.tickets.states["1it"] = whole["tickets"]["states"]["1it"]
    put_weights(run.model, first)
    rewind_to(run, "1it")
    assert torch.equal(run.model.state_dict()[name], began[name])


@pytest.mark.parametrize("statistics", ["measured", "interpolated"])
def test_copies_share_a_state_and_part(tmp_path, monkeypatch, statistics):
    options = f"split='1it', copies=2, points=3, statistics={statistics!r}"
    whole = trains_and_resumes(tmp_path, monkeypatch, "--procedure", f"connectivity({options})", at=3)
    (first,) = whole["tickets"]["copies"]
    assert not torch.equal(first["stem.layer.weight"], whole["model"]["stem.layer.weight"])
    (pair,) = summary("whole")["connectivity"]["pairs"]
    assert pair["places"] == [0, 0.5, 1]
    assert pair["half_way"] == pair["errors"][1]
    assert pair["barrier"] == max(pair["errors"]) - (pair["errors"][0] + pair["errors"][2]) / 2
    if statistics == "interpolated":  # the end of the line is the network that was trained last
        assert pair["errors"][2] == pytest.approx(100 - summary("whole")["test"]["top1"])


@pytest.mark.usefixtures("_small")
def test_there_is_no_barrier_between_a_network_and_itself():
    procedure = "connectivity(points=4, statistics='interpolated')"
    run = modeling.start(parse([*TINY_DATA, "--batch_size", "27", "--quiet", "--epochs", "1", "--procedure", procedure]))
    run.tickets.copies = [weights_of(run.model), weights_of(run.model)]
    (pair,) = modeling.experiment.ACTIONS.get("connect(points=4, statistics='interpolated')")(run)["connectivity"]["pairs"]
    assert pair["barrier"] == 0
    assert len({*pair["errors"], pair["half_way"]}) == 1


def test_the_ticket_of_an_earlier_run_has_copies(ticket):
    procedure = f"connectivity(of={ticket!r}, points=2, number=1, batches=2)"
    run_program(*FLAGS, "--epochs", "2", "--procedure", procedure, "--out_dir", "copies")
    state = saved("copies")
    masks = saved(ticket)["tickets"]["masks"][0]
    run = modeling.start(parse([*FLAGS, "--epochs", "2", "--procedure", procedure]))
    assert {name: int(mask.sum()) for name, mask in kept(run).items()} == {
        n: int(m.sum()) for n, m in unpacked(run, masks).items()
    }
    assert len(state["tickets"]["copies"]) == 1
    assert summary("copies")["connectivity"]["split"] == "2it"


@pytest.mark.usefixtures("_small")
def test_a_run_that_cut_at_its_start_has_controls(tmp_path, monkeypatch):
    """Its weights are drawn again from its seed; a shuffled mask has as much left in each layer, in other places."""
    monkeypatch.chdir(tmp_path)
    asked = [*STEPS, "--epochs", "1", *WEIGHTS]
    cut = ["--prune_rate", "0.7", "--prune_imp", "SNIP(per_class=1)", "--prune_phase", "init"]
    run_program(*asked, *cut, "--out_dir", "cut")
    began = weights_of(modeling.start(parse([*asked, *cut])).model)
    masks = {name: value != 0 for name, value in saved("cut")["model"].items() if name.endswith(".gate.mask")}
    assert masks
    for kind in ("shuffle", "random", "reinitialise"):
        run = modeling.start(parse([*asked, "--procedure", f"control(of='cut', kind={kind!r})"]))
        now = {f"{name}.gate.mask": mask for name, mask in kept(run).items()}
        assert {name: int(mask.sum()) for name, mask in now.items()} == {name: int(mask.sum()) for name, mask in masks.items()}
        assert all(torch.equal(now[name], masks[name]) for name in masks) == (kind == "reinitialise")
        same = {name: torch.equal(value, began[name]) for name, value in weights_of(run.model).items()}
        assert all(same.values()) == (kind != "reinitialise")
    run_program(*asked, "--procedure", "control(of='cut', kind='shuffle')", "--out_dir", "shuffled")
    assert [record["round"] for record in summary("shuffled")["rounds"]] == [1]
    with pytest.raises(Refused, match="--seed 3: 'cut' began with weights of seed 0"):
        run_program(*asked, "--seed", "3", "--procedure", "control(of='cut')", "--out_dir", "other")


@pytest.mark.usefixtures("_small")
def test_what_is_masked_stays_zero_under_momentum_and_decay():
    run = modeling.start(parse([*FLAGS, "--epochs", "1", "--weight_decay", "0.1", "--procedure", rounds(n=1, fraction=0.5)]))
    cut_round(run.pruner, 1, 0.5, 1.0)
    masks = kept(run)
    inputs, targets = next(iter(run.batches(0)))
    for _ in range(50):
        modeling.train_step(run, inputs, targets)
    for name, unit in run.pruner.units.items():
        assert (unit.gate.weight(unit.layer.weight)[~masks[name]] == 0).all()
        assert torch.equal(unit.gate.decide(), masks[name])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--procedure", "rounds", *WEIGHTS, "--prune_rate", "0.5"], "prune_rate has no effect with --procedure rounds"),
        (["--procedure", "rounds"], "prunes: it needs --prune_type"),
        (["--procedure", "rounds(to='5')", *WEIGHTS], "to is a number of steps like '500it'"),
        (["--procedure", "rounds(to='4it')", *WEIGHTS], "no step 4it: it has 2 epochs of 2 steps"),
        (["--procedure", "rounds(rewind='none', to='2it')", *WEIGHTS], "to has no effect"),
        (["--procedure", "rounds(classifier=0.5)", "--prune_type", "structured"], "classifier is about single weights"),
        (["--procedure", "rounds(n=60)", *WEIGHTS], "largest rate"),
        (["--procedure", "rounds", "--prune_type", "structured", "--reconstruct", "merge"], "which repairs nothing"),
        (["--procedure", "rounds", *WEIGHTS, "--prune_scope", "deviation(q=1.0)"], "so does --prune_scope deviation"),
        (["--procedure", "control(of='rounds')", *WEIGHTS, "--init", "dense"], "init has no effect with --procedure control"),
        (["--procedure", "control(of='nothing')", *WEIGHTS], "nothing at 'nothing'"),
        (["--procedure", "control(of='dense')", *WEIGHTS], "has no tickets"),
        (["--procedure", "control(of='rounds', n=3)", *WEIGHTS], "n is that of the run"),
        (["--procedure", "control(of='rounds')", "--prune_type", "structured"], "is of another network"),
        (["--procedure", "connectivity(number=3)"], "number has no effect without of"),
        (["--procedure", "connectivity", *WEIGHTS], "needs --prune_phase init"),
        (["--procedure", "connectivity(of='rounds', number=3)", *WEIGHTS], "has 2 rounds"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(ticket, flags, message):
    run_program(*STEPS, "--epochs", "1", "--out_dir", "dense")
    with pytest.raises(Refused, match=message) as caught:
        run_program(*STEPS, *flags, "--out_dir", "run")
    assert "\n" not in str(caught.value)
    assert not Path("run").exists()


def test_rounds_by_a_criterion_that_reads_the_weights_before_the_first_step(tmp_path, monkeypatch):
    """They are kept also where rounds rewind to a later step, are the same at the end, and are there after a kill."""
    flags = [*WEIGHTS, "--prune_imp", "from_initial(by='movement')", "--procedure", rounds(n=1, to="2it")]
    state = trains_and_resumes(tmp_path, monkeypatch, *flags, at=2)
    initial = {name: value for name, value in state["model"].items() if name.endswith("gate.initial")}
    assert len(initial) == len(TwoBlocks().all_units)
    later = state["tickets"]["states"]["2it"]["model"]
    assert all((value != later[name.replace("gate.initial", "layer.weight")]).any() for name, value in initial.items())
    assert parse(flags).pruning.prune_scope == "local"
