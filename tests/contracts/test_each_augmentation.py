"""Each augmentation says how images change, and each of its options makes a difference to them."""

import pytest
import torch

from settings.meaning import task_of
from settings.registry import AUGMENTATIONS
from tasks.views import Augmentation, Views

pytestmark = pytest.mark.core

VALUES = {"number": (1, 3), "magnitude": (3, 20), "base": ("none", "crop_flip"), "scale": (0.08, 0.9)}
OF_FILES = {"of"}  # tests/tasks/test_streams.py


def seen(text: str) -> torch.Tensor:
    """Views of sixteen images by this answer to --augment."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (16, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return Views(images, torch.arange(16), AUGMENTATIONS.get(text)(), generator)[0:16]


def test_no_two_are_the_same():
    """Of those of whole images; tests/tasks/test_detection.py is about pictures with boxes."""
    views = [seen(name) for name, entry in AUGMENTATIONS.entries.items() if task_of(entry) == "classification"]
    assert all(isinstance(AUGMENTATIONS.get(name)(), Augmentation) for name in AUGMENTATIONS.entries)
    for number, one in enumerate(views):
        assert not any(torch.equal(one, other) for other in views[number + 1 :])


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name, entry in AUGMENTATIONS.entries.items() for option in entry.options if option not in OF_FILES],
)
def test_every_option_has_an_effect(name, option):
    one, other = (seen(f"{name}({option}={value!r})") for value in VALUES[option])
    assert not torch.equal(one, other)
