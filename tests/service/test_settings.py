"""Flags and environment variables: order, defaults, and one clear line for what is not valid."""

from pathlib import Path

import pytest

from service.settings import Settings, read_settings


def test_a_flag_wins_over_the_environment_and_that_over_the_default(tmp_path: Path) -> None:
    environment = {"FEEDRANK_MODELS": str(tmp_path), "FEEDRANK_PORT": "9001", "FEEDRANK_MAX_CANDIDATES": "7"}
    settings = read_settings(["--port", "9002"], environment)
    assert (settings.models, settings.port, settings.max_candidates) == (tmp_path, 9002, 7)
    assert settings.max_body_bytes == 4 * 1024 * 1024


def test_other_variables_of_the_project_are_no_settings(tmp_path: Path) -> None:
    read_settings(["--models", str(tmp_path)], {"FEEDRANK_DATA": "somewhere", "FEEDRANK_PORT": ""})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--models"),
        (["--models", "nowhere/at/all"], "no folder 'nowhere/at/all'"),
        (["--models", ".", "--port", "http"], "--port (FEEDRANK_PORT)"),
        (["--models", ".", "--workers", "0"], "--workers"),
        (["--models", ".", "--poll-seconds", "0"], "--poll-seconds"),
        (["--models", ".", "--log-level", "loud"], "--log-level"),
        (["--models", ".", "--modles", "x"], "--modles"),
    ],
)
def test_what_does_not_hold_ends_with_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read_settings(arguments, {})
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_settings(["--help"], {})
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert [name for name in Settings.model_fields if "--" + name.replace("_", "-") not in shown] == []


def test_cores_are_shared_out_among_workers(tmp_path: Path) -> None:
    for workers in (1, 2, 64):
        settings = Settings(models=tmp_path, workers=workers)
        assert settings.scoring_threads >= 1
        assert Settings(models=tmp_path, workers=workers, threads=3).scoring_threads == 3
