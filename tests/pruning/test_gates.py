"""These tests hold the gate and its gradient against networks whose filters were removed by hand."""

import pytest
import torch
import torch.nn.functional as F

from models.layers import conv_unit
from pruning import OutputGate, WeightMask

pytestmark = pytest.mark.core

CUT = {"stem": [1], "a1": [0, 3], "a2": [2, 5], "b1": [4], "b2": [0, 1, 2]}


def put_masks(network, kind=OutputGate, cut=CUT, straight_through=True):
    for name, unit in network.units.items():
        mask = torch.ones(unit.filters)
        mask[cut[name]] = 0
        unit.gate = kind(unit.filters) if kind is OutputGate else kind((unit.filters,))
        unit.gate.set(mask)
        unit.gate.straight_through = straight_through
    return network


def without_filters(network, x, cut=CUT, training=True):
    """The two-block network with the filters in `cut` taken out: every tensor is sliced, nothing is masked."""

    def unit(name, x, read):
        keep = [f for f in range(network.units[name].filters) if f not in cut[name]]
        layer, norm = network.units[name].layer, network.units[name].norm
        y = F.conv2d(x, layer.weight[keep][:, read], None, 1, 1)
        y = F.batch_norm(
            y, norm.running_mean[keep].clone(), norm.running_var[keep].clone(), norm.weight[keep], norm.bias[keep], training
        )
        return y, keep

    y, keep = unit("stem", x, [0, 1, 2])
    stream = x.new_zeros(len(x), 6, *x.shape[2:]).index_copy(1, torch.tensor(keep), F.relu(y))
    for block in "ab":
        live = [c for c in range(6) if stream.detach()[:, c].any()]
        y, inner = unit(f"{block}1", stream[:, live], live)
        y, keep = unit(f"{block}2", F.relu(y), inner)
        stream = F.relu(stream.index_add(1, torch.tensor(keep), y))
    return network.classifier(stream.mean((2, 3)))


def gradients(network, logits, labels):
    loss = F.cross_entropy(logits, labels)
    named = dict(network.named_parameters())
    return loss, dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


@pytest.mark.parametrize("straight_through", [True, False])
def test_gradient_of_live_filters_is_that_of_the_network_without_the_others(two_blocks, batch, straight_through):
    images, labels = batch
    loss, wanted = gradients(two_blocks, without_filters(two_blocks, images), labels)
    put_masks(two_blocks, straight_through=straight_through)
    masked_loss, got = gradients(two_blocks, two_blocks(images), labels)
    torch.testing.assert_close(masked_loss, loss, rtol=0, atol=1e-13)
    for name, gradient in wanted.items():
        unit = name.split(".")[0]
        keep = [f for f in range(len(gradient)) if f not in CUT.get(unit, [])]
        torch.testing.assert_close(got[name][keep], gradient[keep], rtol=0, atol=1e-13, msg=lambda m, name=name: f"{name}: {m}")


def test_masked_filters_learn_only_while_the_mask_moves(two_blocks, batch):
    images, labels = batch
    for straight_through in (True, False):
        put_masks(two_blocks, straight_through=straight_through)
        _, got = gradients(two_blocks, two_blocks(images), labels)
        for name, filters in CUT.items():
            sizes = got[f"{name}.layer.weight"][filters].flatten(1).norm(dim=1)
            assert (sizes > 1e-4).all() if straight_through else (sizes == 0).all(), name


def test_masked_and_live_gradients_are_alike_at_the_output_and_not_before_batch_norm(two_blocks, batch):
    """Section 3: a masked filter has variance 0, and batch norm multiplies its gradient by 1 / sqrt(eps) = 316."""
    images, labels = batch
    ratios = {}
    for kind in (OutputGate, WeightMask):
        put_masks(two_blocks, kind)
        _, got = gradients(two_blocks, two_blocks(images), labels)
        sizes = got["a2.layer.weight"].flatten(1).norm(dim=1)
        live = [f for f in range(6) if f not in CUT["a2"]]
        ratios[kind] = (sizes[CUT["a2"]].mean() / sizes[live].mean()).item()
    assert 0.3 < ratios[OutputGate] < 3
    assert 100 < ratios[WeightMask] < 1000


def test_before_batch_norm_the_gradient_of_a_masked_filter_is_316_times_as_large():
    """With output variance 1, the same filter under the same gradient: sqrt((1 + eps) / eps) = 316.2 at eps = 1e-5."""
    torch.manual_seed(0)
    unit = conv_unit(3, 1, 3, activation=False).double()
    images, upstream = torch.randn(32, 3, 8, 8).double(), torch.randn(32, 1, 8, 8).double()
    with torch.no_grad():
        unit.layer.weight /= unit.layer(images).std()
    sizes = {}
    for kind in (OutputGate, WeightMask):
        unit.gate = kind(1) if kind is OutputGate else kind((1,))
        unit.gate.set(torch.zeros(1))
        unit.gate.straight_through = True
        sizes[kind] = torch.autograd.grad((unit(images) * upstream).sum(), unit.layer.weight)[0].norm()
    assert (sizes[WeightMask] / sizes[OutputGate]).item() == pytest.approx(316, rel=0.05)


def test_running_variance_stays_healthy_at_the_output_and_decays_before_batch_norm(two_blocks, batch):
    images, _ = batch
    after = {}
    for kind in (OutputGate, WeightMask):
        put_masks(two_blocks, kind)
        two_blocks.train()
        for _ in range(200):
            two_blocks(images)
        after[kind] = two_blocks.a1.norm.running_var[CUT["a1"]].clone()
    assert (after[OutputGate] > 1e-2).all()
    assert (after[WeightMask] < 1e-8).all()


def test_masked_is_removed_in_evaluation_too(two_blocks, batch):
    two_blocks.eval()
    wanted = without_filters(two_blocks, batch[0], training=False)
    put_masks(two_blocks)
    torch.testing.assert_close(two_blocks(batch[0]), wanted, rtol=0, atol=1e-13)
    put_masks(two_blocks, WeightMask)
    assert (two_blocks(batch[0]) - wanted).abs().max() > 0.05  # batch norm's bias still passes


def test_what_the_oracle_of_feedback_says():
    """Lin et al., 2020: the gradient at the masked weights moves the dense ones, and a cut weight comes back."""
    weight = torch.tensor([[1.0, 0.4]], requires_grad=True)
    mask = WeightMask((1, 2))
    mask.set(torch.tensor([[1.0, 0.0]]))
    mask.straight_through = True
    effective = mask.weight(weight)
    (0.5 * (effective[0, 0] - 0.5) ** 2 + 0.5 * (effective[0, 1] - 2) ** 2).backward()
    torch.testing.assert_close(weight - 0.5 * weight.grad, torch.tensor([[0.75, 1.4]]))


def test_bfloat16_keeps_the_gradient_where_it_belongs(two_blocks, batch):
    """Under autocast the same network has nearly the same gradients, and masked filters still have one."""
    images, labels = batch
    network = put_masks(two_blocks.float())
    _, wanted = gradients(network, network(images.float()), labels)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images.float())
    _, got = gradients(network, logits.float(), labels)
    for name in ("stem.layer.weight", "a1.layer.weight", "b2.layer.weight"):
        assert F.cosine_similarity(got[name].flatten(), wanted[name].flatten(), 0) > 0.98
        assert (got[name].flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize(
    "bad", [torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0.0, float("nan"), 1.0])]
)
def test_a_mask_refuses_anything_but_0_and_1(bad):
    for mask in (OutputGate(3), WeightMask((3,))):
        with pytest.raises(ValueError, match="0 and 1"):
            mask.set(bad)
        assert mask.mask.tolist() == [1, 1, 1]


def test_a_mask_refuses_another_shape():
    with pytest.raises(ValueError, match="shape"):
        OutputGate(3).set(torch.ones(4))
    with pytest.raises(ValueError, match="shape"):
        WeightMask((2, 3)).set(torch.ones(3, 2))


@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_mask_that_batch_norm_takes_is_the_one_multiplied_in(two_blocks, batch, moving, training, monkeypatch):
    """Both ways to mask: the same outputs, gradients of every weight, masked ones too, and running statistics."""
    images, labels = batch
    found, before = [], {name: value.clone() for name, value in two_blocks.state_dict().items()}
    put_masks(two_blocks, straight_through=moving).train(training)
    x = torch.ones(1, 1, 1, 1)
    at_norm = sum(unit.gate(unit, x) is x for unit in two_blocks.units.values())  # batch norm has masked, and the gate need not
    assert at_norm == (5 if not moving else 2 if training else 0)  # a2 and b2 have no ReLU
    for fused in (True, False):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda fused=fused: not fused)
        two_blocks.load_state_dict(before, strict=False)
        logits = two_blocks(images)
        loss, got = gradients(two_blocks, logits, labels)
        buffers = {name: buffer.clone() for name, buffer in two_blocks.named_buffers()}
        with torch.no_grad():
            silent = two_blocks(images)
        found.append((logits, loss, got, buffers, silent))
    for part, other in zip(*found, strict=True):
        torch.testing.assert_close(part, other, rtol=0, atol=1e-12)
    assert not torch.equal(found[0][3]["a2.norm.running_var"], before["a2.norm.running_var"]) or not training
