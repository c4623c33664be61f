from __future__ import annotations

from pathlib import Path

import pytest

from scalemine.config import RunError
from scalemine.submit import targets
from scalemine.submit.profile import Profile
from submit import fakes
from submit.fakes import a_job, until


def test_files_are_written_before_a_job_is_sent_and_its_record_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fakes.use_fakes(tmp_path, monkeypatch)
    job, source = a_job(tmp_path, records=tmp_path / "jobs", profile=Profile(cpus=1, memory=1))
    assert set(targets.render(job, "slurm", source)) == {"run.sh"}
    assert not job.home.exists()
    sent = targets.submit(job, "slurm", source)
    until(lambda: targets.state(sent) == "done")
    assert {path.name for path in job.home.iterdir()} == {"run.sh", "some config.yaml", "log", "exit"}
    assert "the stage speaks" in targets.log(sent)
    fakes.write_program(tmp_path / "bin" / "sbatch", "import sys; sys.exit(1)")
    other, source = a_job(tmp_path, records=tmp_path / "others")
    with pytest.raises(RunError):
        targets.submit(other, "slurm", source)
    assert not list((tmp_path / "others").glob("*.json"))


def test_manifests_of_a_configuration_that_is_not_written_yet(tmp_path: Path) -> None:
    job, source = a_job(tmp_path)
    (text,) = targets.render(job, "kubernetes", source).values()
    assert "workdir: work" in text
