from __future__ import annotations

import pytest

from scalemine.config import InputError
from scalemine.store import Workdir
from scalemine.sweep.plan import find_sweep, find_sweeps
from sweep.sweeps import write_plan


def test_the_only_sweep_is_found_and_of_several_one_is_named(tmp_path):
    write_plan(tmp_path, [], "exp", seeds=[1])
    assert find_sweep(Workdir(tmp_path)) == tmp_path / "sweeps/exp"
    write_plan(tmp_path, [], "more", seeds=[1])
    assert find_sweep(Workdir(tmp_path), "more") == tmp_path / "sweeps/more"
    assert [folder.name for folder in find_sweeps(Workdir(tmp_path))] == ["exp", "more"]
    with pytest.raises(InputError, match="several sweeps here; name one with --sweep .there are: exp, more"):
        find_sweep(Workdir(tmp_path))
    with pytest.raises(InputError, match="no sweep 'less' here .there are: exp, more"):
        find_sweep(Workdir(tmp_path), "less")


def test_no_sweep(tmp_path):
    with pytest.raises(InputError, match="no sweep here .*scalemine sweep makes them"):
        find_sweep(Workdir(tmp_path))
