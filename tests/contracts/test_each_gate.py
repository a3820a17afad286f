"""Each gate trains and resumes to the same bits, evaluates without drawing, and settles into plain weights."""

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_DATA, TwoBlocks, run_program
from promises import trains_and_resumes, unchanged

from models.layers import Gate
from pruning import Learner, Pruner
from pruning.removal import Removal, ungated
from settings.arguments import parse
from settings.errors import Refused
from settings.flags import FLAGS
from settings.registry import GATES

pytestmark = pytest.mark.core

LEARNED = {name: entry.traits["of"][0] for name, entry in GATES.entries.items() if "decides" in entry.traits}
# each gate, and ways to use it, such that it cuts something in two epochs of two steps
CHOICES = [
    *(name for name in GATES.entries if name not in LEARNED),
    "output(joint='right')",
    "hard_concrete(droprate=0.916)",
    "hard_concrete(droprate=0.916, on='inputs')",
    "variational(begin=0.0, full=1.5)",
    "supermask",
    "supermask(rescale=True, constant=True, test='thresholded', learning_rate=20.0)",
]
# two values of each option that must give two results
OPTION_VALUES = {
    "on": ("'filters'", "'inputs'"),
    "weight": (0.1, 5.0),
    "decay": (0.0, 0.5),
    "droprate": (0.5, 0.3),
    "learning_rate": (1.0, 20.0),
    "begin": (0.0, 1.0),
    "full": (1.0, 4.0),
    "threshold": (3.0, 0.5),
    "train_clip": (False, True),
    "rescale": (False, True),
    "constant": (False, True),
    "test": ("'drawn'", "'thresholded'"),
}
# the values of FLAGS that say what a pruner cuts, and when
PRUNER = {
    "prune_rate": "0.3", "prune_imp": "L2", "prune_scope": "local", "prune_phase": "init", "rounds": "2",
    "prune_schedule": "cubic", "prune_freq": "2ep", "prune_until": "0.5", "score_batches": "2", "reconstruct": "lasso",
    "target_macs": "0.5", "target_params": "0.5", "round_to": "8", "residual": "grouped",
}  # fmt: skip


def kind_of(gate: str) -> str:
    return LEARNED.get(gate.split("(")[0], "structured")


def test_every_gate_is_among_the_choices():
    assert {choice.split("(")[0] for choice in CHOICES} == {*GATES.entries}


@pytest.mark.parametrize("gate", CHOICES)
def test_it_trains_and_resumes(tmp_path, monkeypatch, gate):
    rate = [] if gate.split("(")[0] in LEARNED else ["--prune_rate", "0.3"]
    state = trains_and_resumes(tmp_path, monkeypatch, "--prune_type", kind_of(gate), "--prune_gate", gate, *rate)
    terms = {"top1", "top5", "loss", "images", "cross_entropy"}
    for row in state["rows"]:
        own = row["train"].keys() - terms
        assert own == ({type(a_gate(gate)).term} if not rate and adds_a_term(gate) else set())
        assert all(row["train"][name] > 0 for name in own)
        assert row["valid"].keys() <= terms | {"classes", "confusions"}


def pruned(gate: str, network) -> Learner | Pruner:
    """A network of which the gates have cut something."""
    if gate.split("(")[0] not in LEARNED:
        pruner = Pruner(network, rate=0.3, gate=gate)
        pruner.update(0.3)
        return pruner
    learner = Learner(network, prune_type=kind_of(gate), gate=gate)
    for each in learner.gates.values():
        for parameter in each.parameters():
            parameter.data += 4 * torch.randn_like(parameter)
    return learner


def adds_a_term(gate: str) -> bool:
    return a_gate(gate).penalty() is not None


def a_gate(gate: str) -> Gate:
    return next(iter(pruned(gate, TwoBlocks()).gates.values()))


@pytest.mark.parametrize("gate", CHOICES)
def test_evaluation_is_deterministic_and_changes_nothing(two_blocks, batch, gate):
    pruner = pruned(gate, two_blocks)
    assert 0 < pruner.cut() < pruner.entries
    two_blocks.eval()
    with unchanged(two_blocks), torch.no_grad():
        assert torch.equal(two_blocks(batch[0]), two_blocks(batch[0]))
        [(each.decide(), each.live, each.reads, each.weight(each_unit.weight)) for each, each_unit in gates_of(pruner)]
    two_blocks.train()
    with torch.no_grad():
        first, second = two_blocks(batch[0]), two_blocks(batch[0])
    assert torch.equal(first, second) == (gate.split("(")[0] not in LEARNED)  # training draws


def gates_of(pruner):
    return [(pruner.gates[name], unit) for name, unit in pruner.units.items()]


@pytest.mark.parametrize("gate", CHOICES)
def test_what_is_decided_is_what_is_in_force(two_blocks, batch, gate):
    """Weights are those in force, filters are taken out: the same outputs without a gate."""
    pruner = pruned(gate, two_blocks)
    two_blocks.eval()
    if not all(each.exact or not each.by_filter for each in pruner.gates.values()):
        pytest.skip("batch norm's bias passes at this gate, which tests/pruning/test_removal.py measures")
    plain = ungated(two_blocks) if kind_of(gate) == "unstructured" else Removal(two_blocks).compact()
    torch.testing.assert_close(plain.eval()(batch[0]), two_blocks(batch[0]), rtol=0, atol=1e-10)


def learned(gate: str, batch) -> list[torch.Tensor]:
    """The parameters, the decisions and the weights in force after three steps, an epoch each."""
    torch.manual_seed(0)
    network = TwoBlocks().double()
    learner = Learner(network, prune_type=kind_of(gate), gate=gate)
    learner.steps, learner.images = 1, 16
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "sigma" in name:
                parameter += 6  # some log alpha are about the threshold
    scales = [{"params": each.parameters(), "lr": 0.1 * each.learning_rate} for each in learner.gates.values()]
    optimizer = torch.optim.SGD([*scales, {"params": [p for n, p in network.named_parameters() if ".gate." not in n]}], 0.1)
    network.train()
    for epoch in range(3):
        learner.before_step(epoch, 0)
        optimizer.zero_grad()
        penalties = [each.penalty() for each in learner.gates.values()]
        loss = F.cross_entropy(network(batch[0]), batch[1]) + sum(one for one in penalties if one is not None)
        loss.backward()
        optimizer.step()
    decided = [each.decide() for each in learner.gates.values()]
    return [*(parameter.detach() for parameter in network.parameters()), *decided]


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in LEARNED for option in GATES.entries[name].options])
def test_every_option_of_a_gate_that_learns_has_an_effect(batch, name, option):
    others = "" if name != "variational" or option in ("begin", "full") else ", begin=0.0, full=0.0"
    others += ", begin=0.0" if option == "full" else ""
    first, second = (learned(f"{name}({option}={value}{others})", batch) for value in OPTION_VALUES[option])
    assert any(one.shape != other.shape or not torch.equal(one, other) for one, other in zip(first, second, strict=False))


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("flag", PRUNER)
def test_flags_that_say_what_a_pruner_cuts_are_refused(name, flag):
    typed = ["--prune_type", LEARNED[name], "--prune_gate", name]
    parse(typed)
    with pytest.raises(Refused, match=f"^--{flag} has no effect with --prune_gate {name}, which itself learns what is cut$"):
        parse([*typed, f"--{flag}", PRUNER[flag]])


def test_those_are_all_flags_about_pruning():
    about = {name for name, flag in FLAGS.items() if flag.section == "pruning"}
    assert about - {"prune_type", "prune_gate", "preset", "keep"} == {*PRUNER}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["structured", "variational"], "--prune_gate variational is for --prune_type unstructured, not structured"),
        (["unstructured", "hard_concrete"], "--prune_gate hard_concrete is for --prune_type structured, not unstructured"),
        (["kernels", "hard_concrete"], "--prune_gate hard_concrete is for --prune_type structured, not kernels"),
        (["structured", "hard_concrete(weight=-1.0)"], "option 'weight' of gate 'hard_concrete' is a number of at least 0"),
        (["structured", "hard_concrete(on='weights')"], "'filters', 'inputs'"),
        (["structured", "hard_concret"], "did you mean 'hard_concrete'"),
        (["structured", "hard_concrete(droprate=1.0)"], "droprate is above 0 and below 1, not 1"),
        (["unstructured", "variational(begin=1.0, full=0.5)"], "the penalty cannot be full at epoch 0.5, before it begins at 1"),
        (["unstructured", "variational"], "nothing is cut before epoch 5 (begin), of 2 epochs"),
        (["unstructured", "variational", "--epochs", "9", "--compact"], "--compact takes out whole filters"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_data_is_loaded(flags, words, monkeypatch):
    import modeling
    import tasks

    monkeypatch.setattr(tasks, "load", lambda *_, **__: pytest.fail("the data was loaded"))
    kind, gate, *others = flags
    with pytest.raises(Refused) as caught:
        modeling.start(
            parse([*TINY_DATA, "--layers", "20", "--epochs", "2", "--prune_type", kind, "--prune_gate", gate, *others])
        )
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_with_gates_that_learned_is_no_beginning(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [*TINY_DATA, "--layers", "20", "--batch_size", "27", "--epochs", "1", "--quiet"]
    run_program(*flags, "--prune_type", "structured", "--prune_gate", "hard_concrete", "--out_dir", "run")
    with pytest.raises(Refused, match="has been pruned; a whole network is needed"):
        run_program(*flags, "--init", "run", "--out_dir", "other")
