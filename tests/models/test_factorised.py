"""A factorised network is rebuilt from its file alone, and a file that says anything else is refused."""

import copy

import pytest
import torch

import models
from models.factorised import put_factors
from settings.errors import Refused

ARCH = "resnext11(groups=4, width=8)"


@pytest.fixture(scope="module")
def network() -> models.Network:
    """A network with a convolution in three factors, and a projection and the classifier in two."""
    torch.manual_seed(0)
    network = models.build(ARCH, classes=3, size=16)
    projection = next(name for name in network.all_units if name.endswith("projection"))
    filters, inputs = network.get_submodule(projection).weight.shape[:2]
    put_factors(network, "stem", [torch.randn(2, 3), torch.randn(5, 2, 3, 3), torch.randn(network.stem.filters, 5)])
    put_factors(network, projection, [torch.randn(4, inputs), torch.randn(filters, 4)])
    put_factors(network, "classifier", [torch.randn(2, network.classifier.weight.shape[1]), torch.randn(3, 2)])
    return network.eval()


@pytest.fixture
def state(network, tmp_path) -> dict:
    """What is in the network's file."""
    models.save(tmp_path / "m.pt", network, models.Card(ARCH, ["a", "b", "c"], 16, [1.0] * 3, [2.0] * 3))
    return torch.load(tmp_path / "m.pt", weights_only=True)


@pytest.mark.core
@torch.no_grad()
def test_the_file_alone_makes_the_network_again(network, state, tmp_path):
    again, x = models.load(tmp_path / "m.pt"), torch.randn(2, 3, 16, 16).double()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    torch.testing.assert_close(again.double()(x), copy.deepcopy(network).double()(x))
    assert again.shapes() == network.shapes()
    assert [*again.factors.values()] == [[2, 5], [4], [2]]
    assert [*again.all_units] == [*network.all_units]
    assert state["shapes"]["units"]["stem.core"] == [5, 2]


@pytest.mark.core
def test_a_whole_network_s_file_says_nothing_of_factors():
    assert models.build(ARCH).shapes().keys() == {"units", "joints"}


def damaged(shapes: dict, path: tuple, value) -> dict:
    shapes = copy.deepcopy(shapes)
    place = shapes
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return shapes


@pytest.mark.core
@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("factors", "stem"), [4, 5], "shapes.factors.stem is 4, not a whole number from 1 to 3"),  # of 3 channels
        (("factors", "stem"), [2, 10**9], "shapes.factors.stem is 1000000000"),
        (("factors", "stem"), [0, 5], "shapes.factors.stem[0] is 0"),
        (("factors", "stem"), [2.5, 5], "shapes.factors.stem[0] is 2.5"),
        (("factors", "stem"), [2, 5, 2], "the length of shapes.factors.stem is 3"),
        (("factors", "stem"), [], "shapes.factors.stem is a list of 0"),
        (("factors", "stem"), None, "shapes.units has no 'stem'"),
        (("factors", "classifier"), [2, 2], "the length of shapes.factors.classifier is 2"),
        (("factors", "classifier"), [4], "shapes.factors.classifier is 4, not a whole number from 1 to 3"),
        (("factors", "other"), [1], "shapes.factors has 'other'"),
        (("factors", "stem.core"), [2, 2], "has no 'stem.core.first'"),
        (("factors",), [], "shapes.factors is a list of 0, not a table by names"),
        (("factors",), None, "shapes.units has no 'stem'"),
        (("units", "stem.core"), [6, 2], "shapes.units.stem.core is 6, not a whole number from 0 to 5"),
        (("units", "stem.core"), [4, 2], "tensors.stem.core.layer.weight is"),
        (("units", "stem.first"), None, "shapes.units has no 'stem.first'"),
    ],
)
def test_a_damaged_file_is_refused_in_a_line(state, tmp_path, path, value, words):
    torch.save({**state, "shapes": damaged(state["shapes"], path, value)}, tmp_path / "damaged.pt")
    with pytest.raises(Refused) as caught:
        models.load(tmp_path / "damaged.pt")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.core
def test_a_convolution_in_groups_has_no_factors(network, state, tmp_path):
    grouped = next(name for name, unit in network.all_units.items() if unit.in_groups)
    torch.save({**state, "shapes": damaged(state["shapes"], ("factors", grouped), [1, 1])}, tmp_path / "damaged.pt")
    with pytest.raises(Refused, match=f"'{grouped}', which is no layer of the network that can be factorised"):
        models.load(tmp_path / "damaged.pt")


@pytest.mark.core
def test_shapes_of_other_factors_do_not_fit(network):
    other = models.build(ARCH, classes=3, size=16)
    put_factors(other, "stem", [torch.randn(1, 3), torch.randn(5, 1, 3, 3), torch.randn(other.stem.filters, 5)])
    for one, two in ((other, network.shapes()), (network, models.build(ARCH, classes=3, size=16).shapes())):
        with pytest.raises(ValueError, match="of which other layers have been factorised"):
            copy.deepcopy(one).reshape(two)
