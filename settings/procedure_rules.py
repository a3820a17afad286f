"""This file holds the rules about procedures and about networks of earlier runs; settings/rules.py says what a rule is."""

import re
from pathlib import Path

from settings.calls import parts_of
from settings.meaning import (
    cuts_itself,
    finds_counts,
    gate_that_learns,
    learns_from_unlabelled,
    of_procedure,
    phase_of,
    says_amounts,
    scope_decides,
    scratch_model,
    takes_masks_of,
)
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
def a_pattern_is_all_that_cuts(settings) -> str | None:
    if settings.network.pattern and cuts_itself(settings):
        name = PROCEDURES.entry(settings.run.procedure).name
        return f"--pattern says which single weights are cut, and --procedure {name} cuts by itself: choose one"


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
    own = of_procedure(procedure, settings.pruning.prune_type) if "procedure" in settings.typed else {}
    for name, value in own.items():
        if name in recipe and name not in settings.typed and value not in (None, recipe[name]):
            values = f"{quote(recipe[name])}, and --procedure {quote(procedure)} --{name} {quote(value)}"
            return f"--recipe {settings.run.recipe} says --{name} {values}: type --{name} as it is meant"


@rule("new")
def a_procedure_that_cuts_has_a_penalty(settings) -> str | None:
    procedure, training = PROCEDURES.entry(settings.run.procedure), settings.training
    if "removes" in procedure.traits and (training.reg == "none" or training.odecay == 0):
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


@rule("new")
def a_procedure_that_cuts_prunes(settings) -> str | None:
    if says_amounts(settings) is not None and settings.pruning.prune_type == "none":
        return f"--procedure {settings.run.procedure} prunes: it needs --prune_type"


@rule("new", "saved")
def one_says_how_much_goes(settings) -> str | None:
    """Of a procedure that cuts, and a criterion or a scope that itself says how much goes."""
    pruning, name = settings.pruning, PROCEDURES.entry(settings.run.procedure).name
    if says_amounts(settings) is None or takes_masks_of(settings) is not None:
        return None
    if finds_counts(pruning.prune_imp):
        return f"--procedure {name} says how much goes, and --prune_imp {pruning.prune_imp} finds its own counts: choose one"
    if scope_decides(settings) or parse_call(pruning.prune_scope)[0] == "preset":
        return f"--procedure {name} says how much goes, and so does --prune_scope {pruning.prune_scope}: choose one"


@rule("new")
def places_in_training_are_read(settings) -> str | None:
    """Places to rewind to, or to split at."""
    for name, value in parse_call(settings.run.procedure)[1].items():
        if name in ("to", "split") and not re.fullmatch(r"\d{1,9}(it|ep)", value):
            return f"--procedure {settings.run.procedure}: {name} is a number of steps like '500it', or of epochs like '2ep'"


@rule("new")
def rounds_without_rewinding_go_nowhere(settings) -> str | None:
    name, options = parse_call(settings.run.procedure)
    if name == "rounds" and options.get("rewind") == "none" and "to" in options:
        return f"--procedure {settings.run.procedure}: to has no effect with rewind='none'"


@rule("new", "saved")
def a_classifier_has_weights_to_cut(settings) -> str | None:
    name, options = parse_call(settings.run.procedure)
    if name == "rounds" and options.get("classifier", 1) != 1 and settings.pruning.prune_type != "unstructured":
        return "--procedure rounds: classifier is about single weights, and needs --prune_type unstructured"


@rule("new")
def tickets_exist(settings) -> str | None:
    path = takes_masks_of(settings)
    if path is not None and not Path(path).exists():
        return f"--procedure {settings.run.procedure}: nothing at '{path}'"


@rule("new")
def tickets_say_how_many_and_from_where(settings) -> str | None:
    name, options = parse_call(settings.run.procedure)
    known = {"control": {"n", "to"}, "connectivity": {"split"}}.get(name, set()) & options.keys()
    if known and takes_masks_of(settings) is not None:
        return f"--procedure {settings.run.procedure}: {min(known)} is that of the run in 'of': leave it out"
    if name == "connectivity" and "number" in options and takes_masks_of(settings) is None:
        return f"--procedure {settings.run.procedure}: number has no effect without of"


@rule("new", "saved")
def copies_have_one_mask(settings) -> str | None:
    pruned, name = settings.pruning.prune_type != "none", parse_call(settings.run.procedure)[0]
    if name == "connectivity" and pruned and takes_masks_of(settings) is None and phase_of(settings).name != "init":
        return "--procedure connectivity compares copies with one mask: it needs --prune_phase init, or of= a run of rounds"


@rule("new", "saved")
def unlabelled_images_are_named(settings) -> str | None:
    data, name = settings.data, PROCEDURES.entry(settings.run.procedure).name
    if data.labelled is not None and data.unlabelled is not None:
        return "--labelled and --unlabelled both say which images have no labels: choose one"
    if learns_from_unlabelled(settings) and data.labelled is None and data.unlabelled is None:
        return f"--procedure {name} learns from images without labels: it needs --labelled 0.1, or --unlabelled DIR"


@rule("new")
def unlabelled_images_exist(settings) -> str | None:
    path = settings.data.unlabelled
    if path is not None and not (path and Path(path).is_dir()):
        return f"--unlabelled: no folder at '{path}'"


@rule("new", "saved")
def students_have_fresh_weights(settings) -> str | None:
    given = [name for name in ("init", "widths", "pattern") if getattr(settings.network, name)]
    if learns_from_unlabelled(settings) and given:
        return f"--procedure noisy_student trains whole networks from fresh weights: leave out --{given[0]}"


@rule("new", "saved")
def the_last_student_alone_is_pruned(settings) -> str | None:
    if learns_from_unlabelled(settings) and (gate := gate_that_learns(settings)):
        return (
            f"--procedure noisy_student prunes its last student alone, and --prune_gate {gate.name} cuts from the first step on"
        )


@rule("new", "saved")
def a_hint_is_of_a_teacher(settings) -> str | None:
    """Of fitnets: without its loss there is nothing to learn at first."""
    entry = PROCEDURES.entry(settings.run.procedure)
    for loss in entry.traits.get("begins by", ()):
        if loss not in (parse_call(part)[0] for part in parts_of(settings.training.distill)):
            return f'--procedure {entry.name} begins by a hint of the teacher: it needs --teacher and --distill "{loss} + KD"'
        if settings.pruning.prune_type != "none" or settings.network.pattern:
            return f"--procedure {entry.name} prunes nothing: begin with a smaller network, by --init model.pt"
