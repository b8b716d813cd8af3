"""The command line: lazy, honest about errors, and in time with JAX's flags."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from omnihuman_jax import cli
from omnihuman_jax.runtime import exit_codes


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return subprocess.run(
        [sys.executable, "-m", "omnihuman_jax.cli", *argv],
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    """Registers a command `it` whose main is the given function; returns the arguments that it saw."""

    def register(main):
        module = types.ModuleType("a_command_of_a_test")
        module.main = main  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(
            cli.COMMANDS, "it", cli.Command(module=module.__name__, help="a test", example="omnihuman it")
        )

    return register


def test_help_lists_every_command_with_an_example() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name, command in cli.COMMANDS.items():
        assert f"omnihuman {name}" in command.example or f"{name} " in command.example
        assert f"$ {command.example}" in done.stdout


def test_help_is_quick_and_imports_no_network_library() -> None:
    code = (
        "import sys, omnihuman_jax.cli\nprint([m for m in ('jax', 'flax', 'av', 'grain', 'mediapipe') if m in"
        " sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_every_command_names_a_module_that_exists_and_has_main() -> None:
    root = Path(cli.__file__).parent.parent
    missing = [name for name, c in cli.COMMANDS.items() if not (root / (c.module.replace(".", "/") + ".py")).is_file()]
    assert not missing


@pytest.mark.parametrize("argv", [[], ["no-such-command"]])
def test_without_a_command_it_says_what_there_is(argv: list[str]) -> None:
    done = run(*argv)
    assert done.returncode == 2 and "sample-media" in done.stderr + done.stdout and "Traceback" not in done.stderr


def test_arguments_reach_the_command_untouched(command) -> None:
    seen: list[list[str]] = []
    command(lambda argv: seen.append(argv))
    assert cli.main(["it", "--config", "configs/demo.py", "--config.seed=3", "--help", "x"]) == 0
    assert seen == [["--config", "configs/demo.py", "--config.seed=3", "--help", "x"]]


@pytest.mark.parametrize(
    ("kind", "text"), [(TimeoutError, "no answer"), (TimeoutError, ""), (ConnectionResetError, "by peer")]
)
def test_what_an_error_was_about_is_in_its_line(
    command, capsys: pytest.CaptureFixture[str], kind: type[OSError], text: str
) -> None:
    def main(argv: list[str]) -> int:
        error = kind(text)
        error.add_note("encode was at clip c7 of v.mp4")
        raise error

    command(main)
    assert cli.main(["it"]) == exit_codes.RETRY
    said = f"{kind.__name__}{': ' * bool(text)}{text}; encode was at clip c7 of v.mp4"
    assert capsys.readouterr().err == f"omnihuman it: storage does not answer ({said}); try again\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("ratio 1.2 of audio\n  is above 1"), "omnihuman it: ratio 1.2 of audio is above 1"),
        (
            FileNotFoundError("a/b: no such folder; name one with videos"),
            "omnihuman it: a/b: no such folder; name one with videos",
        ),
        (FileNotFoundError(2, "No such file or directory", "a/b"), "omnihuman it: a/b: No such file or directory"),
        (ValueError("a\x1b[31m\nb\udce9[red]\u202e"), "omnihuman it: a\\u001b[31m b\\xe9[red]\\u202e"),
        (ModuleNotFoundError("No module named 'mediapipe'", name="mediapipe"), "pip install -e '.[curation]'"),
    ],
)
def test_a_user_error_is_one_line_and_exit_2(
    command, capsys: pytest.CaptureFixture[str], error: Exception, line: str
) -> None:
    def main(argv: list[str]) -> int:
        raise error

    command(main)
    assert cli.main(["it"]) == 2
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1
    with pytest.raises(type(error)):
        cli.main(["--debug", "it"])


def test_an_error_that_knows_its_code_leaves_with_it(command, capsys: pytest.CaptureFixture[str]) -> None:
    class Away(OSError):
        exit_code = exit_codes.RETRY

    def main(argv: list[str]) -> int:
        error = Away("gs://raw/a.mp4: storage did not answer for 10 minutes")
        error.add_note("run the same command again")
        raise error

    command(main)
    assert cli.main(["it"]) == exit_codes.RETRY
    said = "gs://raw/a.mp4: storage did not answer for 10 minutes; run the same command again"
    assert capsys.readouterr().err == f"omnihuman it: {said}\n"
    with pytest.raises(Away):
        cli.main(["--debug", "it"])


def test_a_bug_keeps_its_traceback(command) -> None:
    def main(argv: list[str]) -> int:
        raise TypeError("a bug")

    command(main)
    with pytest.raises(TypeError):
        cli.main(["it"])


def test_simulated_devices_are_there() -> None:
    code = (
        "from omnihuman_jax import cli\ncli.simulate_devices(3)\nimport jax\nprint([d.platform for d in"
        " jax.devices()])\ntry:\n    cli.simulate_devices(2)\nexcept ValueError as e:\n    print(e)"
    )
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "['cpu', 'cpu', 'cpu']",
        "--simulate-devices has to come before jax is imported",
    ], done.stderr


def test_no_simulated_devices_below_one() -> None:
    done = run("--simulate-devices", "0", "report", "--run", "x")
    assert done.returncode == 2 and "at least 1" in done.stderr and "Traceback" not in done.stderr
