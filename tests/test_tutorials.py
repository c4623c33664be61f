"""Every command of the tutorials is run as it stands there, and every file is written as it is shown."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml

from scalemine.cli import app
from scalemine.config import Config

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
TUTORIALS = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
BLOCK = re.compile(r"^```(\w*) ?([\w.]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)


def blocks(tutorial: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the language, the file name and the text of every block."""
    yield from BLOCK.findall(tutorial.read_text(encoding="utf-8"))


def test_commands_and_files_are_such_as_there_are(tutorial: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    seen = 0
    for language, name, text in blocks(tutorial):
        assert language in ("sh", "yaml", "python", "text"), f"a block of {language or 'no language'} would not be run"
        assert bool(name) == (language != "sh"), f"{language} {name}"
        if language == "yaml" and "workdir" in (values := yaml.safe_load(text)):
            Config.model_validate(values)
        if language == "sh":
            for line in re.findall(r"scalemine [^;|\n]*", text):
                _, command, *rest = shlex.split(line)
                options = {name for option in commands[command].params for name in option.opts}
                assert {part for part in rest if re.fullmatch(r"--?[a-z][a-z-]*", part)} <= options, line
                seen += 1
    assert seen, "no command"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_runs(tutorial: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for language, name, text in blocks(tutorial):
        if language != "sh":
            (tmp_path / name).write_text(text, encoding="utf-8")
            continue
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
