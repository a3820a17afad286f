"""This file draws the command lines of benchmarks/fuzz_commands.py from the table of flags, odd ones among plain ones."""

import random

from benchmarks import fuzz_files
from settings.flags import FLAGS
from settings.parsing import Flag
from settings.registry import NETWORKS, Registry
from settings.signatures import Option

QUIET = ["--quiet", "--threads", "1"]
TINY = [*fuzz_files.TINY, "--epochs", "3"]
# what a command line begins with: how it uses the runs, or none of them
BEGINNINGS = {
    "new": TINY,
    "pruned": [*TINY, *fuzz_files.PRUNED],
    "weights": [*TINY, "--prune_type", "unstructured"],
    "bare": ["--dataset", "digits", "--layers", "20", *QUIET],
    "resume": ["--resume", "pruned", *QUIET],
    "resume ended": ["--resume", "smaller", *QUIET],
    "init": [*TINY, "--init", "dense", "--prune_type", "structured"],
    "scratch": [*TINY[: TINY.index("--layers")], "--scratch", "smaller/model.pt", *QUIET],
    "evaluate": ["--evaluate", "smaller/model.pt", *QUIET],
    "predict": ["--predict", "smaller/model.pt", "pictures/test/red", *QUIET],
}
# plain values of flags that have no default, or whose default is not of this place
PLAIN = {
    "out_dir": ["new", "new/deep"],
    "resume": ["dense", "pruned/checkpoint.pt"],
    "arch": [*NETWORKS.entries, "resnet20(shortcut='pad')"],
    "layers": ["20", "32"],
    "scratch": ["smaller", "smaller/model.pt"],
    "widths": ["smaller", "pruned"],
    "pattern": ["rounds", "pruned"],
    "init": ["dense", "dense/checkpoint.pt", "smaller/model.pt"],
    "teacher": ["dense", "dense/checkpoint.pt", "smaller/model.pt"],
    "data_dir": ["pictures"],
    "labelled": ["0.3"],
    "unlabelled": ["pictures"],
    "image_size": ["8", "16", "24"],
    "memory": ["0", "1"],
    "test_size": ["0.3"],
    "target_macs": ["0.5"],
    "target_params": ["0.5"],
    "rounds": ["1", "2"],
    "keep": ["stem", "stage1.*"],
    "odecay": ["0", "0.1"],
    "finetune_lr": ["0.01"],
    "finetune_epochs": ["1"],
    "export": ["new.onnx", "new.pt2"],
    "evaluate": ["smaller/model.pt"],
    "predict": ["smaller/model.pt"],
    "draw": ["new"],
    "threads": ["1", "2"],
    "epochs": ["2", "5"],
    "batch_size": ["2", "18", "1000"],
    "prune_freq": ["2ep", "3it"],
}
# of each kind of number: signs, ends of ranges, more than any type holds, other writings of numbers, and no numbers
NUMBERS = ["0", "1", "2", "-1", "0.5", "0.999999999", "1.0", "1e-300", "1e999", "inf", "nan", "-0.0", "65536", "2147483648"]
NUMBERS += ["1" + "0" * 30, "1" + "0" * 5000, "1_0", " 1", "\u0663", "\u00bd", "0x10", "1e3", "1,5", "--", "ep", "0it", "1.5ep"]
WORDS = ["", " ", "none", "None", "L1", "global", "../dense", "nowhere/at/all", "files/preset.json", "pictures", "dense", "/"]
WORDS += ["a" * 300, "two\nlines", "\x1b[31mred", "\udcff", "Stra\u00dfe", "%s", "{listing}", "-"]
WORDS += ["a,b", "a=b", "x.onnx", "smaller"]
LITERALS = ["None", "True", "''", "'x'", "()", "(1, 2)", "(0.9, 0.1)", "('a',)", "[]", "{}"]
LITERALS += ["{1: 2}", "1j", "b'x'", "...", "1e400", "-1"]
LITERALS += ["0", "0.0", "1", "0.5", "2", "1000", "10**9", "x", "f()", "'files/scan.json'", "'files/preset.json'", "'smaller'"]
REGISTRIES = [flag.registry for flag in FLAGS.values() if flag.registry is not None]


def option_value(option: Option, chance: random.Random) -> str:
    """Draw what is written for an option in a name: mostly what it may be."""
    if chance.random() < 0.25:
        return chance.choice(LITERALS)
    if option.choices:
        return repr(chance.choice(option.choices))
    if isinstance(option.default, bool) or option.default is None:
        return chance.choice(["True", "False", "'smaller/model.pt'", "'rounds'", "'files/scan.json'", "'files/preset.json'"])
    if isinstance(option.default, int | float):
        limits = [number for _, number in option.limits]
        return repr(type(option.default)(chance.choice([option.default, option.default / 2, 1, *limits])))
    return repr(option.default)


def entry(registry: Registry, chance: random.Random) -> str:
    """Draw a name of a registry, often with options, now and then a damaged one."""
    name = chance.choice(list(registry.entries))
    known = registry.entries[name].options
    asked = [option for option in known if known[option].required or chance.random() < 0.3]
    options = [f"{option}={option_value(known[option], chance)}" for option in asked]
    if chance.random() < 0.08:
        options.append(chance.choice(["1", "**{}", "weight=1", "rounds=2", "of='x'", *options]))
    text = f"{name}({', '.join(options)})" if options or chance.random() < 0.1 else name
    if chance.random() < 0.06:
        place = chance.randrange(len(text))
        text = text[:place] + chance.choice(["", "(", ")", "'", "\n", ";"]) + text[place + 1 :]
    return text


def value(name: str, chance: random.Random) -> str:
    """Draw a value for the flag of this name."""
    flag, how = FLAGS[name], chance.random()
    if how < 0.12:
        return chance.choice(NUMBERS)
    if how < 0.2:
        return chance.choice(WORDS)
    if how < 0.24:
        return entry(chance.choice(REGISTRIES), chance)
    plain = PLAIN.get(name) or list(map(str, flag.legal())) or ([] if flag.default is None else [str(flag.default)])
    if flag.registry is not None and (not plain or chance.random() < 0.9):
        return entry(flag.registry, chance)
    if isinstance(flag.default, float) and chance.random() < 0.6:
        return repr(flag.default * chance.choice([0.5, 0.9, 1.1, 2]))
    return chance.choice(plain)


def misspelt(word: str, chance: random.Random) -> str:
    """Draw a spelling that is nearly a flag's."""
    place = chance.randrange(3, len(word))
    wrong = [word[:place] + word[place + 1 :], word[:place] + word[place] + word[place:], word.upper(), word[1:], word[:-2]]
    return chance.choice(
        [*wrong, word.replace("_", "-"), word.replace("--", "--no_"), word + "s", word + "=", "\u2013" + word[2:]]
    )


def goes_with(flag: Flag, use: str) -> bool:
    """Return whether a flag is meant for this use of a run; a line holds some others, too."""
    if use in ("evaluate", "predict"):
        return use in flag.goes_with
    return flag.on_resume != "same" if use == "resume" else flag.kind != "use"


def command_line(beginning: str, chance: random.Random) -> list[str]:
    """Draw a command line: a beginning, with some flags of the table behind it."""
    argv, use = list(BEGINNINGS[beginning]), beginning.split()[0]
    names = [name for name, flag in FLAGS.items() if chance.random() < 0.1 or goes_with(flag, use)]
    for name in chance.sample(names, min(len(names), chance.choice([0, 1, 1, 1, 2, 2, 3, 4, 5]))):
        flag = FLAGS[name]
        word = chance.choice([word for word in flag.words if word != "--compile"])  # whose start may take longer than SECONDS
        word = misspelt(word, chance) if chance.random() < 0.04 else word
        values = [] if flag.action else [value(name, chance) for _ in range(chance.choice([1, 1, 2]) if flag.nargs else 1)]
        if len(values) == 1 and not flag.nargs and chance.random() < 0.1:
            argv.append(f"{word}={values[0]}")
        else:
            argv += [word, *(values if chance.random() > 0.01 else [])]
    if chance.random() < 0.01:
        argv.insert(chance.randrange(len(argv)), chance.choice(WORDS))
    return argv
