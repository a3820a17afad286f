"""This file holds the rules about the networks of students; settings/rules.py says what a rule is."""

from settings.errors import Refused
from settings.meaning import misfit, pixels_of, students_of
from settings.own_files import check_own_file, own_file
from settings.registry import NETWORKS, PROCEDURES, parse_call
from settings.rules import rule


@rule("new", "saved")
def students_are_networks_for_the_data(settings) -> str | None:
    """Each is a network here, or in a file of the user's, that reads the images which the teacher reads."""
    name, teacher = PROCEDURES.entry(settings.run.procedure).name, settings.network.arch
    try:
        for arch in students_of(settings):
            _, options = NETWORKS.check(arch)
            if told := {"classes", "channels"} & options.keys():
                return f"--procedure {name}, student {arch}: the data set says how many {min(told)} there are"
            pixels = pixels_of(teacher) if teacher else None
            size = settings.typed.get("image_size", pixels or settings.data.image_size)
            if words := misfit(arch, settings.data.dataset, size):
                return f"--procedure {name}, student: {words}"
    except ValueError as error:
        return f"--procedure {name}, student: {error}"


@rule("new")
def files_of_students_exist(settings) -> str | None:
    for arch in filter(own_file, students_of(settings)):
        try:
            check_own_file(arch)
        except Refused as error:
            return f"--procedure {PROCEDURES.entry(settings.run.procedure).name}, student: {error}"


@rule("new", "saved")
def every_student_has_a_generation(settings) -> str | None:
    entry, students = PROCEDURES.entry(settings.run.procedure), students_of(settings)
    if not students:
        return None
    generations = parse_call(settings.run.procedure)[1].get("generations", entry.options["generations"].default)
    if len(students) > generations:
        return f"--procedure {entry.name}: student names {len(students)} networks, and there are {generations} generations"


@rule("new", "saved")
def a_dense_teacher_is_the_network_itself(settings) -> str | None:
    if settings.training.teacher == "dense" and students_of(settings):
        return (
            "--teacher dense is the network itself before it is cut, and the students of --procedure "
            f"{PROCEDURES.entry(settings.run.procedure).name} are other networks: type --teacher RUN"
        )
