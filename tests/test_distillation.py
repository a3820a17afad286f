"""These tests hold each loss against hand-computed numbers, its invariances, and its gradient by finite differences."""

import pytest
import torch
import torch.nn.functional as F

from distillation import AT, DKD, KD, RKD, SP, FitNet
from models.seen import Seen
from settings.registry import DISTILLATIONS

pytestmark = pytest.mark.core


def doubles(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def value(loss: torch.Tensor) -> float:
    assert loss.shape == ()
    return loss.item()


def seen(seed: int, channels: int = 3, side: int = 4, images: int = 5, classes: int = 4) -> Seen:
    """What is seen of a network, at random, in float64: three stages, each with maps half as large as the one before."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    maps = tuple(draw(images, channels, side * 2**k, side * 2**k) for k in (2, 1, 0))
    targets = torch.arange(images) % classes
    return Seen(draw(images, classes), maps, maps[-1], draw(images, 6), targets, torch.tensor(3.0))


STUDENT, TEACHER = Seen(doubles([1, 1, 1])), Seen(doubles([2, 1, 0]))


@pytest.mark.parametrize(("temperature", "wanted"), [(1, 0.266217), (2, 0.313684), (4, 0.328202), (20, 0.333125)])
def test_kd_is_the_divergence_times_the_temperature_squared(temperature, wanted):
    """These are T^2 KL(softmax([2, 1, 0] / T) || uniform), which grows to half the variance of [2, 1, 0], 1 / 3."""
    assert value(KD(STUDENT, TEACHER, temperature=temperature, weight=1.0)) == pytest.approx(wanted, abs=1e-6)


def test_kd_is_averaged_over_images_and_not_over_classes():
    one = value(KD(STUDENT, TEACHER, weight=1.0))
    two = Seen(STUDENT.logits.repeat(2, 1)), Seen(torch.cat([TEACHER.logits, STUDENT.logits]))
    assert value(KD(*two, weight=1.0)) == pytest.approx(one / 2)
    p, q = F.softmax(TEACHER.logits / 4, 1), F.softmax(STUDENT.logits / 4, 1)
    assert one == pytest.approx(16 * (p * (p / q).log()).sum().item())
    assert value(KD(STUDENT, TEACHER)) == pytest.approx(0.9 * one)


def test_dkd_with_both_weights_right_is_kd():
    """KL = TCKD + (1 - p_teacher(true)) NCKD: one image at a time (Zhao et al., 2022, equation 7)."""
    student, teacher = seen(0, images=1), seen(1, images=1)
    rest = 1 - F.softmax(teacher.logits / 4, 1)[0, student.targets[0]].item()
    split = value(DKD(student, teacher, alpha=1.0, beta=rest, warmup=0.0))
    assert split == pytest.approx(value(KD(student, teacher, weight=1.0)))


def test_dkd_rises_over_the_epochs():
    student, teacher = seen(0), seen(1)
    whole = value(DKD(student, teacher, warmup=0.0))
    assert value(DKD(student, teacher)) == pytest.approx(whole * 3 / 20)  # in epoch 3
    assert value(DKD(student, teacher, warmup=2.0)) == pytest.approx(whole)


def attention_pair() -> tuple[Seen, Seen]:
    own, other = torch.eye(2, dtype=torch.float64).repeat(1, 2, 1, 1), doubles([2, 0], [0, 0])[None, None]
    return Seen(own, (own,)), Seen(own, (other,))


def test_at_in_both_forms():
    """The student's attention is [1, 0, 0, 1] / sqrt 2, the teacher's [1, 0, 0, 0]."""
    assert value(AT(*attention_pair(), weight=1.0)) == pytest.approx(0.146447, abs=1e-6)
    assert value(AT(*attention_pair(), weight=8.0, form="paper")) == pytest.approx(0.765367, abs=1e-6)  # 2 x 4 positions


def test_at_sums_over_stages_and_pools_the_larger_map():
    student, teacher = seen(0), seen(1, channels=7)
    single = [value(AT(Seen(None, (a,)), Seen(None, (b,)))) for a, b in zip(student.maps, teacher.maps, strict=True)]
    assert value(AT(student, teacher)) == pytest.approx(sum(single))
    large = Seen(None, (F.interpolate(student.maps[0], scale_factor=2),))
    for pair in ((large, Seen(None, teacher.maps[:1])), (Seen(None, teacher.maps[:1]), large)):
        assert value(AT(*pair)) == pytest.approx(single[0])


def test_rkd():
    student = Seen(None, embedding=doubles([0, 0], [3, 4], [6, 8]))
    teacher = Seen(None, embedding=doubles([0, 0], [1, 0], [0, 1]))
    assert value(RKD(student, teacher, distance=1.0, angle=0.0)) == pytest.approx(0.0716991, abs=1e-7)
    assert value(RKD(student, teacher, distance=0.0, angle=1.0)) == pytest.approx(0.1296296, abs=1e-7)
    assert value(RKD(student, teacher)) == pytest.approx(8.273960, abs=1e-6)


def test_sp():
    student, teacher = Seen(None, last=doubles([1, 0], [0, 1], [1, 1])), Seen(None, last=doubles([1, 0], [1, 0], [0, 1]))
    assert value(SP(student, teacher, weight=1.0)) == pytest.approx(0.263001, abs=1e-6)
    assert value(SP(student, teacher)) == pytest.approx(3000 * value(SP(student, teacher, weight=1.0)))


def rotated(rows: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    rotation, _ = torch.linalg.qr(torch.randn(rows.shape[1], rows.shape[1], generator=generator, dtype=rows.dtype))
    return rows @ rotation


def test_rkd_does_not_see_an_isometry_or_a_scale():
    student, teacher = seen(0), seen(1)
    plain = value(RKD(student, teacher))
    moved = Seen(None, embedding=5 * rotated(student.embedding) + 2)
    assert value(RKD(moved, teacher)) == pytest.approx(plain)
    assert value(RKD(moved, student)) == pytest.approx(0, abs=1e-12)
    assert value(RKD(Seen(None, embedding=student.embedding**3), teacher)) != pytest.approx(plain)


def test_sp_does_not_see_a_rotation_or_a_scale():
    student, teacher = seen(0), seen(1)
    moved = Seen(None, last=5 * rotated(student.last.flatten(1)))
    assert value(SP(moved, teacher)) == pytest.approx(value(SP(student, teacher)))
    assert value(SP(moved, student)) == pytest.approx(0, abs=1e-12)
    assert value(SP(Seen(None, last=moved.last + 2), teacher)) != pytest.approx(value(SP(student, teacher)))


FUNCTIONS = [KD, DKD, AT, RKD, SP]


@pytest.mark.parametrize("loss", FUNCTIONS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(loss):
    both = seen(0)
    assert value(loss(both, both)) == pytest.approx(0, abs=1e-12)
    assert value(loss(both, seen(1))) > 1e-3


def inputs_of(loss, shown: Seen) -> tuple[torch.Tensor, ...]:
    return {KD: (shown.logits,), DKD: (shown.logits,), AT: shown.maps, RKD: (shown.embedding,), SP: (shown.last,)}[loss]


OTHER = {"form": "paper", "power": 3.0}


@pytest.mark.parametrize(("loss", "options"), [*((loss, {}) for loss in FUNCTIONS), (AT, OTHER)])
def test_the_gradient_is_that_of_finite_differences(loss, options):
    student, teacher = seen(0, side=1, images=3), seen(1, side=1, images=3)

    def of(*tensors):
        maps = tensors if loss is AT else ()
        last = tensors[0]
        return loss(Seen(last, maps, last, last, student.targets, student.epoch), teacher, **options)

    inputs = [tensor.clone().requires_grad_(True) for tensor in inputs_of(loss, student)]
    assert torch.autograd.gradcheck(of, inputs)


@pytest.mark.parametrize("loss", [RKD, SP, AT])
def test_images_that_look_alike_have_a_finite_gradient(loss):
    student, teacher = seen(0), seen(1)
    inputs = [tensor[:1].repeat(5, *[1] * (tensor.dim() - 1)).requires_grad_(True) for tensor in inputs_of(loss, student)]
    zero = [torch.zeros_like(tensor).requires_grad_(True) for tensor in inputs]
    for tensors in (inputs, zero):
        result = loss(Seen(None, tuple(tensors), tensors[0], tensors[0]), teacher)
        for gradient in torch.autograd.grad(result, tensors):
            assert gradient.isfinite().all()
            assert gradient.abs().max() < 1e6


@pytest.mark.parametrize(
    ("own", "aim", "kind", "kernel"),
    [
        (8, 4, torch.nn.Conv2d, 3),
        (4, 8, torch.nn.ConvTranspose2d, 4),
        (8, 8, torch.nn.Conv2d, 1),
        (8, 6, torch.nn.Conv2d, 3),
        (5, 8, torch.nn.Conv2d, 1),
    ],
)
def test_the_regressor_is_chosen_by_sizes(own, aim, kind, kernel):
    torch.manual_seed(0)
    student = Seen(None, (torch.zeros(1), torch.randn(3, 5, own, own)))
    teacher = Seen(None, (torch.zeros(1), torch.randn(3, 7, aim, aim)))
    loss = FitNet(student, teacher, weight=2.0)
    assert isinstance(loss.regressor, kind)
    assert loss.regressor.kernel_size == (kernel, kernel)
    assert (loss.regressor.in_channels, loss.regressor.out_channels) == (5, 7)
    dimension, number = loss.reads["regressor.weight"]
    assert loss.regressor.weight.shape[dimension] == 5
    assert number == 1
    guessed = loss.norm(loss.regressor(student.maps[1])).relu()
    wanted = teacher.maps[1] if aim <= 8 and own != 5 else F.adaptive_avg_pool2d(teacher.maps[1], 5)
    assert guessed.shape == wanted.shape
    assert value(loss(student, teacher)) == pytest.approx(2 * (guessed - wanted).square().mean().item(), rel=1e-5)


def test_the_regressor_learns_what_the_teacher_shows():
    """A teacher's map that is batch norm and a ReLU of the student's is learned by the regressor alone."""
    torch.manual_seed(0)
    student, other = seen(0, images=16), seen(0, images=16)
    maps = tuple(F.batch_norm(torch.roll(x, 1, 1), None, None, training=True).relu() for x in other.maps)
    loss = FitNet(student, Seen(None, maps), weight=1.0).double()
    optimizer, losses = torch.optim.Adam(loss.parameters(), 0.05), []
    for _ in range(200):
        optimizer.zero_grad()
        losses.append(loss(student, Seen(None, maps)))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.01 * losses[0]
    with pytest.raises(ValueError, match="there is no stage 4: the networks have 3 in common"):
        FitNet(student, student, stage=4)


def test_the_gradient_of_a_hint_is_that_of_finite_differences():
    torch.manual_seed(0)
    student, teacher = seen(0, channels=2, side=1, images=3), seen(1, channels=3, side=1, images=3)
    loss = FitNet(student, teacher, weight=1.0).double()
    parameters = dict(loss.named_parameters())

    def of(maps, *values):
        swapped = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(loss, swapped, (Seen(None, (None, maps)), teacher))

    inputs = [tensor.detach().clone().requires_grad_(True) for tensor in (student.maps[1], *parameters.values())]
    assert torch.autograd.gradcheck(of, inputs)


def test_the_default_weights_are_those_of_the_authors():
    defaults = {name: {key: option.default for key, option in e.options.items()} for name, e in DISTILLATIONS.entries.items()}
    assert defaults == {
        "KD": {"temperature": 4.0, "weight": 0.9},
        "DKD": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup": 20.0},
        "FitNet": {"weight": 100.0, "stage": 2},
        "AT": {"weight": 1000.0, "power": 2.0, "form": "code"},
        "RKD": {"distance": 25.0, "angle": 50.0},
        "SP": {"weight": 3000.0},
    }


@pytest.mark.parametrize("loss", [*FUNCTIONS, FitNet])
def test_bfloat16_is_compared_in_float32(loss):
    def halved(shown: Seen) -> Seen:
        parts = [part.bfloat16() for part in (shown.logits, shown.last, shown.embedding)]
        return Seen(parts[0], tuple(part.bfloat16() for part in shown.maps), *parts[1:], shown.targets, shown.epoch)

    torch.manual_seed(0)
    student, teacher = halved(seen(0)), halved(seen(1))
    made = loss(student, teacher) if loss is FitNet else loss
    assert made(student, teacher).dtype == torch.float32
