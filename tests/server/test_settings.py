"""Settings: sources, their precedence, help, and one-line errors of invalid settings and command lines."""

import argparse
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import get_args, get_origin

import pytest
from isogloss_server.cli import PROGRAM, main, parser
from isogloss_server.cli.serve import add_flags
from isogloss_server.errors import SettingsError
from isogloss_server.settings.declarations import Settings
from isogloss_server.settings.sources import load, printable, unknown_variables


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"ISOGLOSS_{name.upper()}", raising=False)


def parse(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return load(vars(parser.parse_args(arguments)))


def test_flags_win_over_variables_over_the_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting comes from the first source that has it: flag, variable, file, default."""
    file = tmp_path / "isogloss.toml"
    file.write_text("port = 1\nmax_texts = 2\ndrain_s = 3\nmodel = ['a', 'b=c']\n")
    monkeypatch.setenv("ISOGLOSS_PORT", "4")
    monkeypatch.setenv("ISOGLOSS_MAX_TEXTS", "5")
    loaded = parse("--config", str(file), "--port", "6")
    assert (loaded.port, loaded.max_texts, loaded.drain_s, loaded.model) == (6, 5, 3, ("a", "b=c"))
    assert loaded.host == "127.0.0.1"


def test_a_variable_names_the_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ISOGLOSS_CONFIG names the file as --config does."""
    (tmp_path / "c.toml").write_text("port = 7\n")
    monkeypatch.setenv("ISOGLOSS_CONFIG", str(tmp_path / "c.toml"))
    assert parse().port == 7


def test_several_models_are_repeated_flags_or_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several models are a repeated flag, or separated by commas in the environment."""
    monkeypatch.setenv("ISOGLOSS_MODEL", "x, y=/z")
    assert parse().model == ("x", "y=/z")
    assert parse("--model", "p", "--model", "q=r").model == ("p", "q=r")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_help_has_the_flag_and_the_variable_of_each_setting(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`serve --help` lists the flag and the variable of each setting."""
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
        (["--model", "a", "--model", "a"], {}, "", "--model must be one or more models with distinct, non-empty names"),
        (["--prot", "1"], {}, "", "unknown flag '--prot'; did you mean '--port'?"),
        (["--prot=1"], {}, "", "unknown flag '--prot'; did you mean '--port'?"),
        (["zzz"], {}, "", "unknown argument 'zzz'; see isogloss-server serve --help"),
        (["--config", "/no/such/file"], {}, "", "cannot read the config file /no/such/file: No such file"),
        ([], {"ISOGLOSS_MAX_PAIRS": "0"}, "", "ISOGLOSS_MAX_PAIRS must be greater than or equal to 1"),
        ([], {"ISOGLOSS_PORT": "tcp://10.0.0.1:50051"}, "", "`enableServiceLinks: false` in the Pod prevents it"),
        ([], {}, "prot = 1", "config file {file}: unknown setting 'prot'; did you mean 'port'?"),
        ([], {}, "port = 'x'", "config file {file}: port must be a valid integer"),
        ([], {}, "port =", "config file {file} is not valid TOML"),
        ([], {}, "model = []", "config file {file}: model must be one or more models"),
        ([], {}, "config = 'other.toml'", "config file {file} cannot name another config file"),
        (["--config", ""], {}, "", "cannot read the config file .: Is a directory"),
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
    """An unknown flag or key, an invalid value or an unreadable file is one line that names it, exit status 2."""
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
    assert expected.format(file=tmp_path / "c.toml") in written.err
    assert written.err.startswith("isogloss-server: ")
    assert written.err.count("\n") == 1
    assert written.out == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["serv"], "unknown VERB 'serv'; did you mean 'serve'?"),
        (["zzz"], "unknown VERB 'zzz'; choose from serve, models, keys, completion"),
        (["models", "sho"], "unknown VERB 'sho'; did you mean 'show'?"),
        (["models", "list", "--jsn"], "unknown flag '--jsn'; did you mean '--json'?"),
        (["completion", "basj"], "unknown shell 'basj'; did you mean 'bash'?"),
    ],
)
def test_a_mistyped_word_gets_a_suggestion(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown verb, flag or choice is one line with the known word that is closest, exit status 2."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"isogloss-server: {expected}\n"


def test_unknown_variables_give_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable with the prefix that is not a setting gives a warning with the closest name; the client's do not."""
    monkeypatch.setenv("ISOGLOSS_PROT", "1")
    monkeypatch.setenv("ISOGLOSS_SERVER", "localhost:1")
    assert list(unknown_variables()) == ["unknown variable 'ISOGLOSS_PROT'; did you mean 'ISOGLOSS_PORT'?"]


def test_variables_of_kubernetes_give_one_warning_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that Kubernetes sets for a Service give one warning, with the Pod's setting that prevents them."""
    for name in ("SERVICE_HOST", "SERVICE_PORT_GRPC", "PORT_50051_TCP", "PORT_50051_TCP_ADDR"):
        monkeypatch.setenv(f"ISOGLOSS_{name}", "10.0.0.1")
    (line,) = unknown_variables()
    assert line.startswith("ignored ISOGLOSS_PORT_50051_TCP, ISOGLOSS_PORT_50051_TCP_ADDR, ISOGLOSS_SERVICE_HOST, ")
    assert "set by Kubernetes for a Service of that name; `enableServiceLinks: false`" in line


def test_settings_are_immutable() -> None:
    """Settings are immutable."""
    with pytest.raises(ValueError, match="frozen"):
        parse().port = 1  # type: ignore[misc]


def test_config_error_is_a_settings_error() -> None:
    """load() raises SettingsError for values that are invalid."""
    with pytest.raises(SettingsError):
        load({"port": -1})


@pytest.mark.parametrize("verb", [[], ["serve"]])
def test_help_ends_with_an_example_of_settings_that_exist(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The last line of each help is a command line that the parser accepts."""
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--help"])
    assert ended.value.code == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    program, *arguments = last.strip().partition("   ")[0].split()
    assert program == PROGRAM
    assert load(
        {key: value for key, value in vars(parser().parse_args(arguments)).items() if key in Settings.model_fields}
    )


COMPLETE = """
complete_line() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); "$completer"; }}
completer=$(complete -p isogloss-server | sed 's/.*-F \\([^ ]*\\).*/\\1/')
complete_line isogloss-server {words}
printf "%s\\n" "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["se"], ["serve"]),
        (["serve", "--drain"], ["--drain-delay-s", "--drain-s"]),
        (["serve", "--log-format", ""], ["text", "json"]),
        (["serve", "--precision", "b"], ["bf16"]),
        (["serve", "--config", "my"], ["my.toml", "my_model"]),
        (["serve", "--graph-cache", "my"], ["my_model"]),
        (
            ["serve", "--model", "par"],
            ["paraphrase-multilingual-MiniLM-L12-v2", "paraphrase-multilingual-mpnet-base-v2"],
        ),
        (["serve", "--model", "isogloss-static", "--model", "my"], ["my_model"]),
        (["serve", "--model", "cohere:embed-v"], ["cohere:embed-v4.0"]),
        (["models", "show", "LaB"], ["LaBSE"]),
        (["models", "pull", "LaBSE", "my"], ["my_model"]),
        (["serve", "--port", ""], []),
        (["keys", "ro"], ["rotate"]),
        (["keys", "add", "search", "--keys-file", "my"], ["my.toml", "my_model"]),
        (["keys", "add", "search", "--method", "Embed"], ["Embed", "EmbedStream"]),
    ],
)
def test_bash_completes_verbs_flags_and_values(
    words: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the script, bash completes verbs, flags, choices, files, folders and known models."""
    (tmp_path / "my.toml").touch()
    (tmp_path / "my_model").mkdir()
    assert main(["completion", "bash"]) == 0
    program = capsys.readouterr().out + COMPLETE.format(words=" ".join(f"'{word}'" for word in words))
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert sorted(done.stdout.split()) == sorted(expected)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_scripts_of_other_shells_have_choices_and_models(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The scripts for zsh and fish complete choices and known models too."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("sentence-transformers", "bf16", "LaBSE", "cohere:embed-v4.0", "_isogloss_server_models"):
        assert word in script


def test_the_help_begins_with_what_most_servers_set(capsys: pytest.CaptureFixture[str]) -> None:
    """`serve --help` lists the settings by section, those of address, models and limits first."""
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    sections = [line[:-1] for line in capsys.readouterr().out.splitlines() if line.endswith(":") and line[0].isalpha()]
    expected = "options address models limits security queue cache Redis providers metrics traces stopping logs example"
    assert " ".join(sections) == expected


# One value of each type of TOML, as written and by the name of its type.
TOML_VALUES = {
    "boolean": "true",
    "integer": "1",
    "float": "1.5",
    "string": "'x'",
    "array": "[1]",
    "array of strings": "['x']",
    "table": "{a = 1}",
    "date": "2024-01-01",
    "time": "07:32:00",
}
TYPES_OF_SETTINGS: dict[object, set[str]] = {
    bool: {"boolean"},
    int: {"integer"},
    float: {"integer", "float"},
    tuple: {"string", "array of strings"},
    str: {"string"},
}


def types_of(name: str) -> set[str]:
    """Returns the types of TOML that a setting accepts."""
    annotation = Settings.model_fields[name].annotation
    kinds = {annotation, get_origin(annotation), *get_args(annotation)}
    return next(types for kind, types in TYPES_OF_SETTINGS.items() if kind in kinds or kind is str)


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if name != "config"])
def test_a_value_of_another_type_in_the_file_is_rejected(name: str, tmp_path: Path) -> None:
    """Every setting in the file has the type of its values: `port = true` does not serve port 1."""
    file = tmp_path / "c.toml"
    for kind in TOML_VALUES.keys() - types_of(name):
        file.write_text(f"{name} = {TOML_VALUES[kind]}\n")
        with pytest.raises(SettingsError, match=f"^config file {file}: {name} must be ") as raised:
            load({"config": str(file)})
        assert "Input" not in str(raised.value), kind


@pytest.mark.parametrize("text", ["true", "1.0", "1e3", " 1", "1 ", "0x1", "１", "1__0", "_1", "", "9" * 5000, "1\n"])
def test_text_that_is_not_a_whole_number_is_rejected(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag or a variable of a whole number has only digits, with single underscores between them."""
    with pytest.raises(SettingsError, match=r"--port must be (a valid integer|less than|text of)"):
        parse(f"--port={text}")
    monkeypatch.setenv("ISOGLOSS_PORT", text)
    with pytest.raises(SettingsError, match=r"ISOGLOSS_PORT must be (a valid integer|less than|text of)"):
        parse()


@pytest.mark.parametrize(
    ("flag", "name", "text", "expected"),
    [
        ("--max-pairs", "max_pairs", "1_000", 1000),
        ("--drain-s", "drain_s", "1e2", 100.0),
        ("--drain-s", "drain_s", ".5", 0.5),
        ("--metrics-port", "metrics_port", "+7", 7),
        ("--port-file", "port_file", "5", Path("5")),
        ("--host", "host", "1", "1"),
    ],
)
def test_text_becomes_the_type_of_the_setting(
    flag: str, name: str, text: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag and a variable with the same text give the same value."""
    assert getattr(parse(flag, text), name) == expected
    monkeypatch.setenv(f"ISOGLOSS_{name.upper()}", text)
    assert getattr(parse(), name) == expected


@pytest.mark.parametrize(("text", "expected"), [("off", False), ("TRUE", True), ("0", False), ("yes", True)])
def test_a_switch_in_the_environment_is_a_word(text: str, expected: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch is on or off by the usual words; other words are rejected."""
    monkeypatch.setenv("ISOGLOSS_ACCESS_LOG", text)
    assert parse().access_log is expected
    monkeypatch.setenv("ISOGLOSS_ACCESS_LOG", "maybe")
    with pytest.raises(SettingsError, match="ISOGLOSS_ACCESS_LOG must be a valid boolean"):
        parse()


@pytest.mark.parametrize(
    "content",
    [
        "a = " + "[" * 30_000,
        "a = " + "{a = " * 10_000,
        ".".join(["a"] * 30_000) + " = 1",
        "[" + ".".join(["a"] * 30_000) + "]",
        "x = {" + ".".join(["a"] * 30_000) + " = 1}",
        "port = " + "9" * 5000,
        "# " + "x" * (1 << 20),
        "\n".join(f"k{number} = 1" for number in range(6000)),
        "k" * 60_000 + " = 1",
        "host = '" + "h" * 60_000 + "'",
        'host = "a\\u0000b"',
        "cohere_key_file = '''a\nb'''",
        "port = 1\x00",
    ],
    ids=lambda content: content[:20],
)
def test_a_hostile_config_file_is_one_short_line_and_status_2(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However deep, large or odd a file is, it is read in bounded time, and the error is one short line."""
    file = tmp_path / "c.toml"
    file.write_text(content)
    assert main(["serve", "--config", str(file)]) == 2
    written = capsys.readouterr().err
    assert written.startswith("isogloss-server: config file ")
    assert written.count("\n") == 1
    assert len(written) < 1000


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full"])
def test_an_endless_config_file_is_rejected(device: str) -> None:
    """A file without an end is read only up to its limit."""
    with pytest.raises(SettingsError, match="larger than 65,536 bytes"):
        load({"config": device})


def test_a_config_file_can_be_a_pipe(tmp_path: Path) -> None:
    """A file that can be read only once, as in `--config <(...)`, is read once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("port = 7\n",))
    writer.start()
    assert load({"config": str(pipe)}).port == 7
    writer.join(60)


def test_numpy_computes_on_the_calling_thread() -> None:
    """A matrix product of the server starts no threads of OpenBLAS, which would compete with those of the executor."""
    code = (
        "from isogloss_server.settings.sources import configure_libraries; configure_libraries()\n"
        "import numpy as np; from pathlib import Path\n"
        "a = np.ones((2000, 2000)); a @ a\n"
        "print(len(list(Path('/proc/self/task').iterdir())))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_the_log_has_the_models_and_the_settings_that_differ() -> None:
    """Models are listed, and settings with their default value are left out."""
    assert printable(parse()) == {"models": ["isogloss-static"], "settings": {}}
    changed = printable(parse("--port", "7", "--no-access-log", "--graph-cache", "/tmp", "--model", "a=b"))
    assert changed == {"models": ["a=b"], "settings": {"port": 7, "access_log": False, "graph_cache": "/tmp"}}


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--cache-redis-url", "redis://:swordfish@host"),
        ("--model", "openai:m@http://user:swordfish@host/v1"),
        ("--model", "openai:m@user:sword@swordfish@host/v1"),
        ("--model", "m=openai:m@https://host/v1?key=swordfish"),
        ("--host", "https://swordfish@host"),
    ],
)
def test_secrets_are_masked_in_the_log(flag: str, value: str) -> None:
    """Passwords and queries of URLs are masked, also if the setting will be rejected for having them."""
    written = str(printable(parse(flag, value)))
    assert "swordfish" not in written
    assert "***" in written
