"""The house's rules: who imports whom, and what the command line costs."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# a file imports only from rows above its own; models/ and pruning/criteria/ also within the folder, criteria never each other
ROWS = [
    ["registry", "output", "storage", "distributed"],
    ["refusals"],
    ["arguments", "learning_rate", "models.layers"],
    ["models.network"],
    ["models"],
    ["data", "engine", "regularizers", "runs", "report", "pruning.gates.mask", "pruning.context", "pruning.groups"],
    [
        "scalars",
        "evaluation",
        "deploy.latency",
        "pruning.criteria",
        "pruning.granularities",
        "pruning.scopes",
        "pruning.schedules",
        "pruning.phases",
        "pruning.channels",
    ],
    ["pruning.accounting", "deploy.export"],
    ["pruning.budget", "pruning.removal"],
    ["pruning.pruner"],
    ["pruning", "deploy"],
    ["build"],
    ["deploy.conclude", "deploy.use", "experiment"],
    ["modeling", "sensitivity"],
]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in [*ROOT.glob("*.py"), *ROOT.glob("models/*.py"), *ROOT.glob("pruning/**/*.py")]
)


def row_of(module: str) -> int:
    """The row that names the module or, failing that, its nearest package."""
    while True:
        for number, row in enumerate(ROWS):
            if module in row:
                return number
        assert "." in module, f"{module} has no place in the layout"
        module = module.rpartition(".")[0]


def imports(module: str) -> set[str]:
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from pruning import accounting` names a module
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & set(MODULES) or {node.module}
    return {name for name in found if name in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_upwards(module):
    for imported in imports(module):
        within_models = module.startswith("models") and imported in ("models.layers", "models.network", "models.files")
        assert row_of(imported) < row_of(module) or within_models, f"{module} imports {imported}"


def test_the_rule_sees_what_it_forbids():
    assert "pruning.accounting" in imports("modeling")
    assert row_of("pruning.criteria.L1") == row_of("pruning.scopes") > row_of("models.vgg")


def test_a_command_line_is_read_without_torch():
    code = "import sys, arguments; arguments.parse([]); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_help_takes_under_a_quarter_of_the_import_of_torch():
    def seconds(*command):
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
        return time.perf_counter() - started

    pairs = [(seconds("modeling.py", "--help"), seconds("-c", "import torch")) for _ in range(3)]  # in turns
    assert min(shown for shown, _ in pairs) < min(imported for _, imported in pairs) / 4


def test_every_criterion_file_holds_the_criterion_of_its_name():
    for path in (ROOT / "pruning" / "criteria").glob("*.py"):
        if path.name != "__init__.py":
            functions = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
            assert [name for name in functions if not name.startswith("_")] == [path.stem]


def test_files_stay_readable():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("models/*.py"), *ROOT.glob("pruning/**/*.py")]:
        lines = len(path.read_text().splitlines())
        assert lines <= (450 if path.name in ("modeling.py", "arguments.py", "report.py") else 250), (
            f"{path.name} has {lines} lines"
        )
