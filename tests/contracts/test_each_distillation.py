"""Each distillation loss trains, resumes, has a gradient for the student alone, and options that all change something."""

import copy

import pytest
import torch
from conftest import TwoBlocks, run_program
from promises import STEPS, differences, trains_and_resumes

import models
from models.seen import Seen
from settings.registry import DISTILLATIONS

pytestmark = pytest.mark.core

# two values of each option that must give two results
OPTION_VALUES = {"weight": (0.5, 0.25), "temperature": (4.0, 2.0), "alpha": (1.0, 2.0), "beta": (8.0, 2.0), "stage": (1, 2)}
OPTION_VALUES |= {"warmup": (20.0, 5.0), "power": (2.0, 1.0), "form": ("code", "paper"), "distance": (25.0, 1.0)}
OPTION_VALUES |= {"angle": (50.0, 2.0)}
TRAINED = {"FitNet": "FitNet(stage=1)"}  # the small network has one stage


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """The folder of a run that has trained the small network."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "build", lambda _, classes=10, **__: TwoBlocks(classes=classes))
        run_program(*STEPS, "--seed", "1", "--out_dir", str(folder))
    return str(folder)


@pytest.mark.parametrize("name", DISTILLATIONS.entries)
def test_it_trains_and_resumes(tmp_path, monkeypatch, teacher, name):
    text = TRAINED.get(name, name)
    state = trains_and_resumes(tmp_path, monkeypatch, "--teacher", f"{teacher}/checkpoint.pt", "--distill", text, "--tensorboard")
    assert all(row["train"][name] > 0 for row in state["rows"])
    assert all(set(row["valid"]) & {*DISTILLATIONS.entries} == set() for row in state["rows"])
    assert state["teaching"]["file"]
    assert bool(state["teaching"]["losses"]) == (name == "FitNet")


def seen(seed: int) -> Seen:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(True)

    maps = (draw(4, 3, 8, 8), draw(4, 5, 4, 4))
    return Seen(draw(4, 3), maps, maps[-1], draw(4, 6), torch.arange(4) % 3, torch.tensor(3.0))


def said(text: str, student: Seen, teacher: Seen) -> torch.Tensor:
    torch.manual_seed(0)
    loss = DISTILLATIONS.get(text)
    if isinstance(getattr(loss, "func", loss), type):
        loss = loss(student, teacher).double()
    return loss(student, teacher)


@pytest.mark.parametrize("name", DISTILLATIONS.entries)
def test_it_is_a_scalar_and_changes_nothing_that_it_sees(name):
    student, teacher = seen(0), seen(1)
    before = copy.deepcopy((vars(student), vars(teacher)))
    first, second = said(name, student, teacher), said(name, student, teacher)
    assert first.shape == ()
    assert torch.equal(first, second)
    assert differences(before, (vars(student), vars(teacher))) == []
    shown = [student.logits, *student.maps, student.embedding]
    gradients = torch.autograd.grad(first, shown, allow_unused=True)
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize(("name", "option"), [(n, o) for n, entry in DISTILLATIONS.entries.items() for o in entry.options])
def test_every_option_has_an_effect(name, option):
    one, other = (said(f"{name}({option}={value!r})", seen(0), seen(1)) for value in OPTION_VALUES[option])
    assert one.item() != pytest.approx(other.item())
