"""These tests hold the layout: which file may import which, how long files are, and what the command line costs."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# packages, ground first: a file imports only from rows above its own, or from its own package
ROWS = [
    ["settings"],
    ["runs.storage"],
    ["models"],
    ["tasks", "runs"],
    ["pruning", "regularizers", "distillation"],
    ["training"],
    ["deploy"],
    ["modeling", "report", "sensitivity", "proxies"],
]
NAMES = {name for row in ROWS for name in row}
FILES = [path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] in {path.name, *NAMES}]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sorted(FILES)}


def row_of(module: str) -> int:
    """The row that names the module or, failing that, its nearest package."""
    while True:
        for number, row in enumerate(ROWS):
            if module in row:
                return number
        assert "." in module, f"{module} has no place in the layout"
        module = module.rpartition(".")[0]


def imports(module: str) -> set[str]:
    """The project's modules that this one imports, wherever in the file."""
    imported = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from pruning import accounting` names a module
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= names & MODULES.keys() or {node.module}
    return imported & MODULES.keys()


@pytest.mark.core
@pytest.mark.parametrize("module", MODULES)
def test_imports_point_to_the_ground(module):
    for imported in imports(module):
        same = imported.partition(".")[0] == module.partition(".")[0]
        assert row_of(imported) < row_of(module) or (same and row_of(imported) == row_of(module)), f"{module} imports {imported}"
        criteria = "pruning.criteria."
        assert not (module.startswith(criteria) and imported.startswith(criteria)), f"{module} imports {imported}"


@pytest.mark.core
def test_no_module_imports_itself_by_a_detour():
    waiting = {module: imports(module) - {module} for module in MODULES}
    # a package's __init__ gathers names of its own files, which import each other by file
    while free := [module for module, needs in waiting.items() if not needs & waiting.keys()]:
        for module in free:
            del waiting[module]
    assert not waiting, f"in a circle: {', '.join(waiting)}"


@pytest.mark.core
def test_every_package_is_in_the_layout():
    packages = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests", "benchmarks"}
    assert packages | {path.stem for path in ROOT.glob("*.py")} == NAMES - {"runs.storage"}


@pytest.mark.core
def test_the_rule_sees_what_it_forbids():
    assert "pruning.accounting" in imports("training.build")
    assert row_of("deploy.use") > row_of("pruning.scopes") > row_of("models.vgg") > row_of("runs.storage")


@pytest.mark.core
def test_a_command_line_is_read_without_torch():
    code = "import sys; from settings import arguments; arguments.parse([]); print({'torch', 'numpy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "set()\n"


def test_help_takes_under_a_quarter_of_the_import_of_torch():
    def seconds(*command):
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - started

    pairs = [(seconds("modeling.py", "--help"), seconds("-c", "import torch")) for _ in range(2)]  # in turns
    assert min(shown for shown, _ in pairs) < min(imported for _, imported in pairs) / 4


@pytest.mark.core
def test_every_criterion_file_holds_the_criterion_of_its_name():
    for path in (ROOT / "pruning" / "criteria").glob("*.py"):
        if path.name != "__init__.py":
            functions = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
            assert [name for name in functions if not name.startswith("_")] == [path.stem]


@pytest.mark.core
def test_files_stay_readable():
    for path in [*FILES, *(ROOT / "benchmarks").glob("*.py")]:
        lines = len(path.read_text().splitlines())
        assert lines <= (450 if path.name == "modeling.py" else 250), f"{path.name} has {lines} lines"


def private_names(path: Path) -> list[str]:
    """Names with a leading underscore that a test file uses of anything but itself."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            names.append(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "getattr", "hasattr", "delattr")):
            names += [word.value for word in node.args[1:2] if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    return [name for name in names if name.rpartition(".")[2].startswith("_") and not name.endswith("__")]


@pytest.mark.core
@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_tests_use_public_names_alone(path):
    assert private_names(path) == []


@pytest.mark.core
def test_a_private_name_is_seen(tmp_path):
    file = tmp_path / "test_it.py"
    file.write_text("from a import _b, c\nc._d(self._e.f)\nmonkeypatch.setattr(c, '_g', 1)\nc.__dict__\nself._own = 1\n")
    assert sorted(private_names(file)) == ["_b", "_d", "_g"]
