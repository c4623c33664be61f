from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "scalemine"
SOURCES = sorted(PACKAGE.rglob("*.py"))
OF_THE_WHOLE = {Path(__file__).name, "test_tutorials.py"}
UNTESTED = {"__init__.py", "__main__.py", "sample_pools.py"}
# Modules that run what they read.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "numpy.load", "np.load"}


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("source", [path for path in SOURCES if path.name not in UNTESTED], ids=relative)
def test_each_module_has_its_tests(source: Path) -> None:
    tests = ROOT / "tests" / source.relative_to(PACKAGE).with_name(f"test_{source.name}")
    assert tests.exists(), f"{relative(source)} has no {tests.relative_to(ROOT)}"


def test_each_test_file_has_its_module() -> None:
    tested = {relative(path) for path in SOURCES}
    for tests in sorted((ROOT / "tests").rglob("test_*.py")):
        module = tests.relative_to(ROOT / "tests").with_name(tests.name.removeprefix("test_"))
        assert tests.name in OF_THE_WHOLE or str(module) in tested, f"{tests} tests no module"


@pytest.mark.parametrize("source", SOURCES, ids=relative)
def test_nothing_is_unpickled_or_evaluated(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported = {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.ImportFrom):
            imported = set((node.module or "").split(".")) | {alias.name for alias in node.names}
        else:
            imported = set()
        if source == PACKAGE / "executor.py":
            # Shares out work between processes of ours; its files are not read or written.
            imported -= {"joblib"}
            assert not imported & {"load", "dump", "Memory"}, f"{source}:{node.lineno}"
        assert not imported & FORBIDDEN_MODULES, f"{source}:{node.lineno}"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN_CALLS, f"{source}:{node.lineno}"
            # What pickles hide behind: numpy's own, and code that comes with a model.
            for keyword in node.keywords:
                if keyword.arg in ("allow_pickle", "trust_remote_code"):
                    assert ast.unparse(keyword.value) == "False", f"{source}:{node.lineno}"


def test_imports_go_one_way() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_command_line_prints() -> None:
    for source in SOURCES:
        calls = [node for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        prints = [node.lineno for node in calls if ast.unparse(node.func) == "print"]
        assert not prints or source.name == "cli.py", f"{source}:{prints[0]}"
