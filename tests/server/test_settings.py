"""Every knob from every source, and complaints of one line."""

import argparse
import subprocess
from pathlib import Path

import pytest
from isogloss_server.cli import PROGRAM, main, parser
from isogloss_server.cli.serve import add_flags
from isogloss_server.settings.declarations import Settings, SettingsError
from isogloss_server.settings.sources import load, unknown_variables


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"ISOGLOSS_{name.upper()}", raising=False)


def parse(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return load(vars(parser.parse_args(arguments)))


def test_flag_beats_variable_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest source wins, knob by knob."""
    file = tmp_path / "isogloss.toml"
    file.write_text("port = 1\nmax_texts = 2\ndrain_s = 3\nmodel = ['a', 'b=c']\n")
    monkeypatch.setenv("ISOGLOSS_PORT", "4")
    monkeypatch.setenv("ISOGLOSS_MAX_TEXTS", "5")
    loaded = parse("--config", str(file), "--port", "6")
    assert (loaded.port, loaded.max_texts, loaded.drain_s, loaded.model) == (6, 5, 3, ("a", "b=c"))
    assert loaded.host == "127.0.0.1"


def test_the_file_may_be_named_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ISOGLOSS_CONFIG names the file as --config does."""
    (tmp_path / "c.toml").write_text("port = 7\n")
    monkeypatch.setenv("ISOGLOSS_CONFIG", str(tmp_path / "c.toml"))
    assert parse().port == 7


def test_models_may_be_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are a repeated flag, or parted by commas in the environment."""
    monkeypatch.setenv("ISOGLOSS_MODEL", "x, y=/z")
    assert parse().model == ("x", "y=/z")
    assert parse("--model", "p", "--model", "q=r").model == ("p", "q=r")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_knob_is_a_flag_with_help_that_names_its_variable(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The help tells each knob's flag, variable, and range or choice."""
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert f"--{name.replace('_', '-')}" in help_text
    assert f"ISOGLOSS_{name.upper()})" in help_text


@pytest.mark.parametrize(
    ("arguments", "variables", "content", "expected"),
    [
        (["--port", "70000"], {}, "", "--port must be less than or equal to 65535"),
        (["--port", "x"], {}, "", "--port must be a valid integer"),
        (["--log-format", "xml"], {}, "", "--log-format must be 'text' or 'json'"),
        (["--drain-s", "-1"], {}, "", "--drain-s must be greater than or equal to 0"),
        (["--model", "a", "--model", "a"], {}, "", "--model must be one model or more, with distinct names"),
        (["--prot", "1"], {}, "", "unrecognized arguments: --prot 1"),
        (["--config", "/no/such/file"], {}, "", "cannot read /no/such/file"),
        ([], {"ISOGLOSS_MAX_PAIRS": "0"}, "", "ISOGLOSS_MAX_PAIRS must be greater than or equal to 1"),
        ([], {"ISOGLOSS_PORT": "tcp://10.0.0.1:50051"}, "", "switch enableServiceLinks off"),
        ([], {}, "prot = 1", "prot is no setting; did you mean port?"),
        ([], {}, "port = 'x'", "port in the config file must be a valid integer"),
        ([], {}, "port =", "is not TOML"),
        ([], {}, "model = []", "model in the config file must be one model or more"),
        ([], {}, "config = 'other.toml'", "cannot name another config file"),
        (["--config", ""], {}, "", "cannot read .: Is a directory"),
        (["--drain-s", "nan"], {}, "", "--drain-s must be a finite number"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(
    arguments: list[str],
    variables: dict[str, str],
    content: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An unknown key, a value out of range or a bad file is one clear line that names it, exit status 2."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if content:
        (tmp_path / "c.toml").write_text(content)
        arguments = [*arguments, "--config", str(tmp_path / "c.toml")]
    status: object
    try:
        status = main(["serve", *arguments])
    except SystemExit as ended:
        status = ended.code
    written = capsys.readouterr()
    assert status == 2
    assert expected in written.err
    assert written.err.startswith("isogloss-server: ")
    assert written.err.count("\n") == 1
    assert written.out == ""


def test_unknown_variables_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable with our prefix that is no knob is told, with the knob it may have meant; the client's are not."""
    monkeypatch.setenv("ISOGLOSS_PROT", "1")
    monkeypatch.setenv("ISOGLOSS_SERVER", "localhost:1")
    assert list(unknown_variables()) == ["ISOGLOSS_PROT is no setting; did you mean ISOGLOSS_PORT?"]


def test_settings_cannot_change() -> None:
    """Settings are a value."""
    with pytest.raises(ValueError, match="frozen"):
        parse().port = 1  # type: ignore[misc]


def test_config_error_is_a_settings_error() -> None:
    """load() raises one kind of error whatever is wrong."""
    with pytest.raises(SettingsError):
        load({"port": -1})


@pytest.mark.parametrize("verb", [[], ["serve"]])
def test_help_ends_with_an_example_of_settings_that_exist(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The last line of each help is a command line, and one that the parser takes."""
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--help"])
    assert ended.value.code == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    program, *arguments = last.strip().partition("   ")[0].split()
    assert program == PROGRAM
    assert load(
        {key: value for key, value in vars(parser().parse_args(arguments)).items() if key in Settings.model_fields}
    )


def test_bash_completes_flags_of_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    """The script that completion prints is bash's, and completes verbs and flags in a real bash."""
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    ask = """
complete_line() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); "$completer"; echo "${COMPREPLY[@]}"; }
completer=$(complete -p isogloss-server | sed 's/.*-F \\([^ ]*\\).*/\\1/')
complete_line isogloss-server se
complete_line isogloss-server serve --drain
"""
    done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["serve", "--drain-delay-s --drain-s"]
