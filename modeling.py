"""This script trains a convolutional network on CIFAR-10, or on other images, and prunes it while it learns.

`--help` lists its flags. The loss is computed in `losses`, below. Masks are made in `Pruner.update` (pruning/pruner.py), by a
threshold on scores (`global_` in pruning/scopes.py), and take effect in pruning/gates/.
"""

import math
import signal
import sys
import time

from settings.arguments import parse, typed_over
from settings.earlier import taken_over
from settings.errors import Failed, Stopped, guard
from settings.meaning import masks_filters
from settings.recipes import departures
from settings.rules import recipe_without_effect

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while torch is being imported, Ctrl-C just ends the program
    # a wrong command is refused before torch is loaded
    with guard("modeling.py", goes_on=True):
        SETTINGS = parse(sys.argv[1:])
    if SETTINGS.use.evaluate or SETTINGS.use.predict:
        from deploy import use

        with guard("modeling.py", goes_on=True):
            use.main(SETTINGS)
        raise SystemExit

from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from deploy import measure
from deploy.making import make_form
from runs.console import closing_lines, duration, epoch_lines, header, note, say_all
from runs.folder import Folder, provenance, refuse_used
from runs.tensorboard import Scalars
from tasks import task_of
from training import experiment
from training.averaging import averaged
from training.best import consider, end_stage
from training.engine import Engine, Stop
from training.experiment import Experiment
from training.freezing import learning_in
from training.record import Result, Row, config, run_name, under_masks
from training.stages import plan_of
from training.team import Team
from training.tickets import remember
from training.turns import groups_text, images_of, turns


def losses(run: Experiment, inputs, targets):
    """Compute the network's outputs, and the terms of the loss by name: the task's, the teacher's, the regulariser's, the gates'.

    A step minimises the sum of the terms. This is the pass that --compile captures.
    """
    with run.engine.autocast():
        outputs = run.network(inputs)
    terms = run.task.losses(outputs, targets, run.settings.training.label_smoothing)
    if run.teaching is not None:
        terms = run.teaching.added(terms, inputs, outputs, targets)
    for name, penalty in run.penalties.items():
        terms[name] = penalty(run.model)
    return outputs, terms


def train_step(run: Experiment, inputs, targets, part: tuple[int, int] = (0, 1)):
    """Learn from one batch, and return the outputs and the terms of the loss.

    The optimiser takes a step behind each batch or, with --accumulate, behind the last of several: `part` (i, n) says that this
    is batch i of n, whose mean loss the step follows.
    """
    if part[0] == 0:
        run.optimizer.zero_grad(set_to_none=True)
    outputs, terms = run.losses(inputs, targets)  # `losses`, above, captured where --compile asks for it
    # with --freeze only the classifier's parameters get a gradient
    (sum(terms.values()) / part[1]).backward(inputs=run.learning)
    if part[0] == part[1] - 1:
        run.optimizer.step()
        if run.proximal is not None and run.learning is None:
            run.proximal(run.model, run.optimizer.param_groups[0]["lr"])
        if run.average is not None:
            run.average.update()  # --ema
    return outputs, terms


def train_epoch(run: Experiment, epoch: int, bar) -> dict:
    """Train on the batches of one epoch, and return the task's measures.

    `bar` is the progress bar. Raises Failed, naming epoch and step, if the loss is not finite.
    """
    if run.now.noise:
        run.model.train()
    else:
        run.model.train_without_dropout()
    run.learning = learning_in(run, epoch)
    meter, last_shown, first = run.task.meter(run.engine.device, training=True), time.monotonic(), run.first_step(epoch)
    bar.update(images_of(run) - images_of(run, first))
    for step, part, inputs, targets in turns(run, epoch):  # --mixup mixes the images of a batch there
        if part[0] == 0:
            remember(run, epoch, step)
            with run.stop.at_once(f"in epoch {epoch}, while masks were made"):
                run.move_masks(epoch, step)
            run.set_learning_rate(epoch, step)
        outputs, terms = train_step(run, inputs, targets, part)

        meter.add(outputs, targets, terms)
        bar.update(run.task.batch)
        run.stop.check(f"in epoch {epoch} after step {step} of {run.steps}")
        if not bar.disable and time.monotonic() - last_shown > 1:  # to read the meter makes an accelerator wait
            last_shown, measures = time.monotonic(), meter.read()
            bar.set_postfix_str(measures_text(run, measures, terms) + pruning_text(run), refresh=False)
    run.move_masks(epoch, None)  # so that what is evaluated is pruned where masks are soft
    run.team.average_statistics(run.model)
    if run.average is not None:
        run.average.gather(run.team)
    meter.gather(run.team)
    if (bad_batch := int(meter.first_bad)) >= 0:
        bad_step = bad_batch // run.settings.training.accumulate
        raise Failed(f"the loss was not finite at epoch {epoch}, step {bad_step} of {run.steps}: {cure(run)}")
    return meter.read()


def cure(run: Experiment) -> str:
    """Say what helps against a loss that is not finite: the learning rate of a run, or of a stage that has begun, is fixed."""
    if "finetune_lr" in run.now.fixed:
        return f"--resume {run.now.keep}, in the run's folder, with a smaller --finetune_lr"
    return "begin a new run with a smaller --lr, or with --warmup_epochs 5"


def train(run: Experiment, folder: Folder | None, rows: list[dict]) -> list[dict]:
    """Train through the stages of the plan, and return a row for every epoch.

    `rows` are those of the epochs that are done already; without a `folder` nothing is written.
    """
    settings, task, plan = run.settings, run.task, run.plan
    epoch_images, hidden = images_of(run), True if settings.run.quiet else None
    total, done = plan.epochs * epoch_images, len(rows) * epoch_images
    bar = tqdm(total=total, unit="img", unit_scale=True, disable=hidden, initial=done)
    scalars = Scalars(folder) if folder and settings.run.tensorboard else None
    with bar:
        for number in range(run.stage, len(plan.stages)):
            stage, first = plan.stages[number], plan.first_epoch(number)
            if number > run.stage:
                if folder and stage.keep and stage.epochs:
                    folder.keep(stage.keep)
                run.enter(number)
                if folder and not stage.epochs and number + 1 < len(plan.stages):
                    folder.save(run.state())  # a last stage without epochs may still be asked for otherwise
            for epoch in range(len(rows), first + stage.epochs):
                began = time.monotonic()
                trained = train_epoch(run, epoch, bar)
                seconds = time.monotonic() - began
                with averaged(run):  # the weights that --ema averages, where it does
                    valid = run.evaluate(task.valid or task.test, by_class=task.valid is None)
                    if not math.isfinite(valid["loss"]):  # of weights that the epoch's last step has spoilt nothing is kept
                        raise Failed(f"the validation loss was not finite after epoch {epoch}: {cure(run)}")
                    rows = [*rows, Row.of(run, epoch, trained, valid, seconds).plain()]
                    consider(run, epoch, valid[task.metric])  # --keep_best
                if folder:
                    folder.log(rows[-1], run.state())
                if scalars:
                    scalars.log(rows[-1])
                say_all(*epoch_lines(rows[-1], task))
                if len(rows) == 1 and plan.epochs > 1:
                    whole = duration((time.monotonic() - began) * plan.epochs)
                    note(settings, f"epoch 0 took {seconds:.1f} s; all {plan.epochs} will take about {whole}")
            end_stage(run, rows)
    return rows


def carry_out(run: Experiment, folder: Folder | None, rows: list[dict]) -> None:
    """Say what is in force, train the epochs that follow those in `rows`, and say and record the result.

    A signal ends it early: Stopped is raised, with the command that goes on.
    """
    settings, task = run.settings, run.task
    describe(run)
    if folder:
        for line in [*folder.notes, *(f"otherwise than when the run began: {line}" for line in folder.changed(config(run)))]:
            note(settings, line)
        folder.begin({**provenance(), **config(run)})
    say_all(header(settings), *(line for row in rows for line in epoch_lines(row, task)))
    try:
        rows = train(run, folder, rows)
        # the held-out images made every choice; the test images are read here, once
        as_validated = task.valid is None and run.now.epochs > 0
        test = rows[-1]["valid"] if as_validated else run.evaluate(task.test, by_class=True)
        result = Result.of(run, rows, test).plain()
        if folder and not masks_filters(settings):
            run.stop.check("before the network was saved")
            result["file"] = measure.save_network(run, result, folder.path / "model.pt")
    except Stopped as error:
        advice = f": go on with --resume {folder.path}" if folder else ""
        raise Stopped(error.number, f"{error}{advice}") from None
    try:
        if "file" in result:
            measure.measure_and_export(run, result)
        if settings.ending.form and folder:
            result["form"] = make_form(run, folder.path)
    finally:  # training is done: its result is said and kept also where measuring fails
        say_all(*closing_lines(result, settings, task))
        if folder:
            folder.write("summary.json", result)
            note(settings, f"records: {folder.path}")


def describe(run: Experiment) -> None:
    """Say on stderr which network, data, departures and recipe are in force, and of a dry run the plan."""
    settings = run.settings
    processes = f", {run.team.size} processes" if run.team.size > 1 else ""
    lines = [f"{run.networks.arch} on {run.engine.device}, {run.engine}{processes}; {run.task}"]
    lines += [f"otherwise than the paper: {line}" for line in departures(settings)]
    if recipe := settings.run.recipe:
        typed = typed_over(settings)
        idle = sorted(recipe_without_effect(settings))
        words = f", typed over it: {', '.join(typed)}" if typed else ""
        lines.append(f"recipe {recipe}{words}" + (f"; without effect beside that: its {', '.join(idle)}" if idle else ""))
    if run.pruner is not None and run.pruner.shared:
        decisions = len(run.pruner.decisions)
        lines.append(f"amounts are of {decisions} decisions, each about one or more of {run.pruner.entries} filters")
    lines += [*taken_over(settings), *([str(run.teaching)] if run.teaching else [])]
    lines += run.task.notes
    if run.task.batch < settings.training.batch_size:
        size = settings.training.batch_size
        lines.append(f"batches hold all {run.task.batch} training images, fewer than --batch_size {size}")
    lines += groups_text(run)
    if settings.run.dry_run:
        lines += [f"plan, of which a dry run does two steps a stage: {stage}" for stage in plan_of(settings).stages]
    for line in lines:
        note(settings, line)


def measures_text(run: Experiment, measures: dict, terms: dict) -> str:
    """The progress bar shows the measures so far: the loss, its terms where there are several, and the metric if measured."""
    each_term = "".join(f" {name} {measures[name]:.3f}" for name in terms) if len(terms) > 1 else ""
    metric = f" acc {measures[run.task.metric]:.1f}%" if run.task.metric in measures else ""
    return f"loss {measures['loss']:.3f}{each_term}{metric}"


def pruning_text(run: Experiment) -> str:
    """The progress bar shows what masks have cut so far; empty where nothing is pruned."""
    if run.pruner is None:
        return ""
    zero, total, kept = under_masks(run)
    return f" kept {sum(kept.values())} filters, sparsity {100 * zero / total:.1f}%, {int(run.pruner.changes)} masks changed"


def start(settings, **machine) -> Experiment:
    """Build everything that exists before the first step, with the loss of this file; see training.experiment.start."""
    return experiment.start(settings, losses, **machine)


def main(settings) -> None:
    """Carry out a command of training: begin a run, go on with one, or print again what came of one that has ended."""
    engine = Engine.choose(settings.engine)
    team = Team.join(engine.device)
    settings = settings.replace(quiet=settings.run.quiet or not team.leads)
    stop = Stop()
    if team.size == 1:  # of several processes, those that wait for the stopped one's next step would wait for ever
        stop.listen()
    if team.leads:
        refuse_used(settings.run.out_dir)
    with ExitStack() as held:
        held.callback(team.leave)
        resume = settings.run.resume
        task = task_of(settings.data.dataset)
        folder = held.enter_context(Folder.resume(Path(resume), task.measures, task.trained)) if resume and team.leads else None
        result = folder.result(settings, plan_of(settings, folder.state.get("steps")).epochs) if folder else None
        if team.share(result is not None):
            if folder:
                say_all(header(settings), *(line for row in folder.rows for line in epoch_lines(row, task)))
                say_all(*closing_lines(result, settings, task))
            return
        state = team.share(folder.state if folder else None)
        with stop.at_once("before the first step"):
            run = start(settings, engine=engine, stop=stop, team=team, state=state)
        if state is None and not settings.run.dry_run and team.leads:
            folder = held.enter_context(Folder.create(settings.run.out_dir, run_name(run.settings)))
            folder.save(run.state())
        carry_out(run, folder, state["rows"] if state else [])


if __name__ == "__main__":
    with guard("modeling.py", goes_on=True):
        main(SETTINGS)
