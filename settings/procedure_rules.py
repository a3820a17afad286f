"""This file holds the rules about procedures and about networks of earlier runs; settings/rules.py says what a rule is."""

from pathlib import Path

from settings.meaning import finds_counts, of_procedure, scratch_model
from settings.paths import model_of
from settings.recipes import of_recipe, quote
from settings.registry import PROCEDURES, parse_call
from settings.rules import rule


@rule("new")
def patterns_exist(settings) -> str | None:
    for path in settings.network.pattern or ():
        if not (path and Path(path).exists()):
            return f"--pattern: nothing at '{path}'"


@rule("new")
def a_pattern_is_of_fresh_weights(settings) -> str | None:
    network = settings.network
    if network.pattern and (network.init or network.widths or scratch_model(settings)):
        return "--pattern makes a sparse network with fresh weights: leave out --init, --scratch and --widths"


@rule("new", "saved")
def weights_are_trained_or_fresh(settings) -> str | None:
    if settings.network.init and scratch_model(settings):
        return "--init starts from trained weights, --scratch from fresh ones: choose one"


@rule("new")
def one_flag_says_how_it_goes(settings) -> str | None:
    scratch, procedure = settings.network.scratch, settings.run.procedure
    name, options = parse_call(procedure)
    if scratch is not None and "procedure" in settings.typed and (name, options.get("of")) != ("scratch", scratch):
        return f"--scratch stands for --procedure \"scratch(of='{scratch}')\", not {procedure}: choose one"


@rule("new")
def scratch_says_which_network(settings) -> str | None:
    if scratch_model(settings) and not {"arch", "layers", "shortcut"}.isdisjoint(settings.typed):
        return "--scratch says which network: leave out --arch, --layers and --shortcut"


@rule("new", "saved")
def scratch_prunes_nothing(settings) -> str | None:
    if scratch_model(settings) and settings.pruning.prune_type != "none":
        return f"--scratch trains a network that has been pruned: leave out --prune_type {settings.pruning.prune_type}"


@rule("new")
def scratch_exists(settings) -> str | None:
    path = scratch_model(settings)
    if path is not None and not model_of(path).is_file():
        return f"--scratch: no file at '{model_of(path)}'"


@rule("new")
def scratch_options_have_an_effect(settings) -> str | None:
    name, options = parse_call(settings.run.procedure)
    if name == "scratch" and options.get("budget", "E") == "E" and {"cap", "times"} & options.keys():
        return f"--procedure {settings.run.procedure}: cap and times are about budget='B'"


@rule("new")
def widths_exist(settings) -> str | None:
    for path in settings.network.widths or ():
        if not (path and Path(path).exists()):
            return f"--widths: nothing at '{path}'"


@rule("new")
def widths_are_of_fresh_weights(settings) -> str | None:
    if settings.network.widths and (settings.network.init or scratch_model(settings)):
        return "--widths makes a network with fresh weights: leave out --init and --scratch"


@rule("new")
def widths_prune_nothing(settings) -> str | None:
    if settings.network.widths and settings.pruning.prune_type != "none":
        return f"--widths trains a network that is narrow from the start: leave out --prune_type {settings.pruning.prune_type}"


@rule("new")
def recipe_and_procedure_agree(settings) -> str | None:
    """Both stand for other flags; where they differ in one, it has to be typed."""
    recipe, procedure = of_recipe(settings.typed), settings.run.procedure
    own = of_procedure(procedure) if "procedure" in settings.typed else {}
    for name, value in own.items():
        if name in recipe and name not in settings.typed and value not in (None, recipe[name]):
            values = f"{quote(recipe[name])}, and --procedure {quote(procedure)} --{name} {quote(value)}"
            return f"--recipe {settings.run.recipe} says --{name} {values}: type --{name} as it is meant"


@rule("new")
def a_procedure_that_cuts_has_a_penalty(settings) -> str | None:
    procedure, training = PROCEDURES.entry(settings.run.procedure), settings.training
    if "cuts" in procedure.traits and (training.reg == "none" or training.odecay == 0):
        return f"--procedure {procedure.name} trains with a penalty before it cuts: it needs --reg, and an --odecay above 0"


@rule("new")
def a_procedure_that_selects_has_its_criterion(settings) -> str | None:
    """Of multilayer: another criterion, or none, would leave its selections without anything to do."""
    pruning, entry = settings.pruning, PROCEDURES.entry(settings.run.procedure)
    for own in entry.traits.get("prune_imp", ()):
        same = parse_call(own)[0] == parse_call(pruning.prune_imp)[0] and finds_counts(pruning.prune_imp)
        if pruning.prune_type != "structured" or not same:
            asked = f"--prune_type {pruning.prune_type} --prune_imp {pruning.prune_imp}"
            return f"--procedure {entry.name} takes out whole filters by --prune_imp {own}, not {asked}"
