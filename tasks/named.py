"""This file holds what tasks with named classes share: the record of their data, and its comparison with an earlier one."""

from settings.errors import Refused
from settings.registry import DATASETS
from settings.schema import COUNT, TEXT, DictOf, ListOf, Record, Unfit, check, number, whole
from tasks.classes import composed
from tasks.task import Task

RECORD = Record(
    {
        "classes": ListOf(TEXT, 1),
        "images": DictOf(ListOf(COUNT)),
        "mean": ListOf(number(0, 255)),
        "std": ListOf(number(0, 255, above=True)),
    },
    {"boxes": DictOf(ListOf(COUNT))},
)
# how many classes, or mistakes, a line tells
TOLD = 5


class Named(Task):
    """A task about images with `classes`, a list of names; `normalise_by` takes over a mean and deviation by channel."""

    classes: list[str]

    @classmethod
    def inputs_of(cls, data) -> tuple[int, int, int]:
        return source_of(data).inputs

    @classmethod
    def outputs_of(cls, data) -> int:
        return source_of(data).class_count()

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def normalise_by(self, mean: list[float], std: list[float]) -> None:
        raise NotImplementedError

    def check(self, record: dict | None) -> None:
        if record is None:
            return
        channels = self.inputs[0]
        try:
            check(record, RECORD, "data")
            check(len(record["mean"]), whole(channels, channels), "the length of data.mean")
            check(len(record["std"]), whole(channels, channels), "the length of data.std")
        except Unfit as error:
            raise Refused(f"the checkpoint is of other images: {error}") from None
        if record["classes"] != self.classes:
            odd = sorted({*record["classes"]} ^ {*self.classes})
            raise Refused(f"the classes are not those of the run: {', '.join(odd[:5]) or 'they are in another order'}")
        self.normalise_by(record["mean"], record["std"])
        for name, counts in self.record()["images"].items():
            earlier = record["images"].get(name, [])
            if earlier != counts:
                self.notes.append(f"other data than when the run began: {sum(counts)} {name} images, were {sum(earlier)}")

    def compare_names(self, names: list[str] | None, where: str) -> None:
        if names is not None and names != self.classes:
            mine, theirs = ", ".join(self.classes[:5]), ", ".join(names[:5])
            self.notes.append(f"{where} was trained on other classes ({theirs}) than these ({mine})")

    def numbers_in(self, card) -> list[int] | None:
        """Return the number that each class has in a model file's card; None if the card does not know one of them."""
        known, names = composed(card.classes), composed(self.classes)
        return [known.index(name) for name in names] if set(names) <= set(known) else None


def first_of(rows: list[str]) -> str:
    """Return the first rows of a list as the text of a line, with how many more there are."""
    more = f", {len(rows) - TOLD} more" if len(rows) > TOLD else ""
    return f"{', '.join(rows[:TOLD])}{more}"


def source_of(data, quiet: bool = True):
    """Return the source of images that the data settings name; not `quiet`, it shows how far its reading is."""
    options = {name: getattr(data, name) for name in DATASETS.entry(data.dataset).options}
    source = DATASETS.get(data.dataset)(**options)
    source.quiet = quiet
    return source
