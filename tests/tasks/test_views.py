"""These tests hold random operations to torchvision's own, and to what a seed may decide."""

import pytest
import torch
from torchvision.transforms.v2 import RandAugment

import tasks
from settings.arguments import parse
from settings.registry import AUGMENTATIONS
from tasks.images import Dataset, Images
from tasks.views import Augmentation, RandomOperations, Views

pytestmark = pytest.mark.core


def pictures(count: int = 12, size: int = 16, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (count, size, size, channels), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_an_operation_is_the_one_that_torchvision_draws(magnitude):
    image = pictures(1)
    met = set()
    for seed in range(150):
        torch.manual_seed(seed)
        wanted = RandAugment(1, magnitude)(image[0].permute(2, 0, 1))
        torch.manual_seed(seed)
        operations = RandomOperations(1, 1, magnitude, torch.Generator())
        kind = int(torch.randint(len(operations.transform.names), ()))
        operations.kinds[:] = kind
        # only an operation that has two directions draws one; of the others it changes nothing
        operations.signs[:] = bool(torch.rand(()) <= 0.5)
        met.add(kind)
        assert torch.equal(operations.apply(image.clone(), slice(0, 1))[0].permute(2, 0, 1), wanted), operations.transform.names[
            kind
        ]
    assert len(met) == 14


def test_each_image_of_a_batch_has_operations_of_its_own():
    images, generator = pictures(), torch.Generator().manual_seed(3)
    operations = RandomOperations(12, 2, 9, generator)
    together = operations.apply(images.clone(), slice(0, 12))
    alone = torch.cat([operations.apply(images[number : number + 1].clone(), slice(number, number + 1)) for number in range(12)])
    assert torch.equal(together, alone)
    assert len(operations.kinds.unique(dim=0)) > 6


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_bytes_of_the_same_shape(channels):
    images = pictures(channels=channels)
    before, how = images.clone(), Augmentation(True, True, 3, 20)
    seen, again = (Views(images, torch.arange(12), how, torch.Generator().manual_seed(0))[2:9] for _ in range(2))
    assert (seen.dtype, seen.shape) == (torch.uint8, (7, 16, 16, channels))
    assert torch.equal(images, before)
    assert torch.equal(seen, again)


def test_labels_order_crops_and_flips_are_those_without_operations():
    images = Images(pictures(24), torch.arange(24))
    dataset = Dataset(images, None, images, [str(number) for number in range(24)], "half", "cpu")
    one, two, plain = (list(dataset.epoch(8, name, 5, 2)) for name in (*["randaugment(base='crop')"] * 2, "crop"))
    for (inputs, labels), (again, _), (untouched, others) in zip(one, two, plain, strict=True):
        assert torch.equal(inputs, again)
        assert torch.equal(labels, others)
        assert not torch.equal(inputs, untouched)
        # what has met identities alone is what it was
        assert inputs.shape == untouched.shape
    torch.manual_seed(11)
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(one, dataset.epoch(8, "randaugment(base='crop')", 5, 2), strict=True))
    other = next(dataset.epoch(8, "randaugment(base='crop')", 5, 3))[0]
    assert not torch.equal(one[0][0], other)


@pytest.mark.parametrize(("answer", "wanted"), [("randaugment(number=1)", "crop"), ("randaugment(base='none')", "none")])
def test_it_follows_the_data_sets_own_augmentation(answer, wanted):
    task = tasks.load(parse(["--dataset", "digits", "--augment", answer]).data, batch_size=8, seed=0, device="cpu")
    assert task.plain == wanted
    assert AUGMENTATIONS.check(task.augment)[1]["base"] == wanted
    noisy, quiet = (next(task.batches(0, noise=noise))[0] for noise in (True, False))
    assert not torch.equal(noisy, quiet)
