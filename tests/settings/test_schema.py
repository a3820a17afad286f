"""A schema allows what the program writes, and names the first place of anything else."""

import dataclasses
import json
import math

import pytest

from settings.errors import Refused
from settings.files import parse_json
from settings.flags import FLAGS, defaults
from settings.saved import FIRST, check_settings, counted
from settings.schema import COUNT, FINITE, PLAIN, TEXT, All, DictOf, ListOf, Maybe, Record, Unfit, check, number, whole

pytestmark = pytest.mark.core

SCHEMA = Record({"rows": ListOf(Record({"loss": FINITE})), "name": TEXT}, {"kept": DictOf(whole(1), 1), "lr": Maybe(number(0))})
GOOD = {"rows": [{"loss": 1}], "name": "run", "kept": {"a": 1}, "lr": None, "newer": [{"more": 1.5}]}


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_what_is_written_is_allowed():
    check(GOOD, SCHEMA)
    check(GOOD | {"lr": 0}, SCHEMA)
    check(3, All((COUNT, whole(3, 4))))
    for schema, value in ((COUNT, 0), (PLAIN, nested(10)), (ListOf(COUNT, 2), (1, 2)), (whole(3, 3), 3)):
        check(value, schema)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": None}, "rows is None, not a list"),
        ({"rows": [{"loss": 1}, {"loss": math.nan}]}, "rows[1].loss is nan, not a finite number"),
        ({"rows": [{"loss": True}]}, "rows[0].loss is True, not a finite number"),
        ({"rows": [{"loss": 10**400}]}, "rows[0].loss is a number of many digits, not a finite number"),
        ({"rows": [{}]}, "rows[0] has no 'loss'"),
        ({"rows": {"loss": 1}}, "rows is a table of 1, not a list"),
        ({"name": "a\0b"}, "name is 'a\\x00b', not a text"),
        ({"name": ["x"] * 3}, "name is a list of 3, not a text"),
        ({"kept": {}}, "kept is a table of 0, not a table of at least 1"),
        ({"kept": {"a": 0}}, "kept.a is 0, not a whole number of at least 1"),
        ({"kept": [1]}, "kept is a list of 1, not a table by names"),
        ({"lr": -1}, "lr is -1, not a finite number of at least 0"),
        ({"newer": [math.inf]}, "newer is a list of 1, not made of finite numbers, texts, lists and tables"),
        ({"newer": nested(200)}, "newer is a list of 1, not made of finite numbers, texts, lists and tables"),
    ],
)
def test_the_first_wrong_place_is_named(change, message):
    with pytest.raises(Unfit) as caught:
        check(GOOD | change, SCHEMA)
    assert str(caught.value) == message


def test_each_of_all_schemas_must_allow_a_value():
    with pytest.raises(Unfit, match="it is 5, not a whole number from 3 to 4"):
        check(5, All((COUNT, whole(3, 4))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a": 1, "a": 2}', "is damaged"),  # nobody knows which value is meant
        ("1" * 5000, "is damaged"),
        ('{"a": NaN}', "a is nan, not a whole number"),
        ("", "is damaged"),
    ],
)
def test_json_is_read_as_far_as_its_schema_allows(text, message):
    with pytest.raises(Refused, match=message):
        parse_json(text.encode(), "f.json", "record", Record({"a": COUNT}))


def record(**changes):
    return counted(defaults() | {"typed": {}, "arch": "resnet20"} | changes)


def test_a_record_has_the_flags_that_it_was_written_with():
    names = [*FLAGS, "typed"]
    check_settings(record(), names)
    for name in names:
        short = {key: value for key, value in record().items() if key != name}
        with pytest.raises(Unfit, match=f"has no '{name}'" if name in FIRST else "values, not the"):
            check_settings(short, names)
        del short["flags"]
        if name not in FIRST:  # a record from before the flags were counted
            check_settings(short, names)
    for wrong in (len(FLAGS), None, "2", True):
        with pytest.raises(Unfit, match="values, not the"):
            check_settings(record() | {"flags": wrong}, names)


def test_a_flag_that_is_newer_than_a_record_is_no_fault(monkeypatch):
    saved = record()
    monkeypatch.setitem(FLAGS, "newer", dataclasses.replace(FLAGS["seed"], name="newer"))
    check_settings(saved, FLAGS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1},
        {"lr": "0.1"},
        {"lr": math.nan},
        {"epochs": -1},
        {"epochs": 2.0},
        {"seed": True},
        {"prune_freq": "0it"},
        {"prune_type": "whole"},
        {"optimizer": "sgdd"},
        {"lr_schedule": "step(at=3)"},
        {"image_size": 20_000},
        {"quiet": 1},
        {"export": "m.onnx"},
        {"data_dir": "a\0b"},
        {"typed": {"momentum": 2}},
        {"typed": None},
    ],
    ids=str,
)
def test_a_record_holds_what_could_be_typed(wrong):
    with pytest.raises(Unfit):
        check_settings(record(**wrong), FLAGS)


def test_values_that_follow_from_others_are_allowed():
    check_settings(record(prune_until=0.0, prune_rate=0.0, odecay=1, export=["m.onnx"], compile=None), FLAGS)
    check_settings(json.loads(json.dumps(record())), FLAGS)
