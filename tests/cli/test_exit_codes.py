"""What a script can rely on: 0 done, 2 the user can fix it, 1 a bug, 130 interrupted."""

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from disa.cli.main import main
from disa.errors import DisaError
from disa.stages import STAGES


def test_the_installed_command_is_this_entry_point():
    (command,) = entry_points(group="console_scripts", name="disa")
    assert command.value == "disa.cli.main:main"
    assert command.load() is main


def test_the_exit_code_leaves_the_process():
    code = "import sys; from disa.cli.main import main; sys.exit(main(['inspect', 'nowhere']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("disa: nowhere: ")


@pytest.fixture
def finished(finished_run):
    """Recipe and run directory; finished stages are only read."""
    return str(finished_run.parent / "recipe.yaml"), finished_run


def test_a_finished_run_exits_with_0_and_says_where_the_report_is(finished, capsys):
    recipe, run_dir = finished
    assert main(["run", recipe]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert sum("finished earlier, nothing changed" in line for line in lines) == 12
    # Rich wraps a long path on a narrow terminal.
    assert "".join(lines).endswith(f"report: {run_dir / '8_report' / 'report.html'}")
    assert (run_dir / "8_report" / "summary.txt").read_text().splitlines()[0] in printed.out


@pytest.mark.parametrize("stage", STAGES)
def test_every_finished_stage_alone_exits_with_0(stage, finished, capsys):
    assert main([stage, finished[0]]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "command, recipe", [("compare", "compare-countdown"), ("study", "study"), ("plan", "quickstart")]
)
def test_commands_whose_processes_find_their_own_work_refuse_a_launch(
    command, recipe, pytestconfig, monkeypatch, capsys
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([command, str(pytestconfig.rootpath / "recipes" / f"{recipe}.yaml")]) == 2
    assert capsys.readouterr().err.startswith(f"disa: disa {command}: 2 processes of one launch. Fix: start it plainly")


def test_one_json_object_comes_from_inspect(finished, capsys):
    _, run_dir = finished
    assert main(["inspect", str(run_dir), "--json"]) == 0
    from_run = json.loads(capsys.readouterr().out)
    assert main(["inspect", str(run_dir / "5_anchor"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == from_run
    manifest = json.loads((run_dir / "5_anchor" / "manifest.json").read_text())
    assert from_run["fingerprint"] == manifest["anchor"]["fingerprint"]
    assert from_run["good"] + from_run["gated"] + from_run["flagged"] == from_run["prompts"] == 9


def test_inspect_draws_the_figures_it_names(finished, tmp_path, capsys):
    _, run_dir = finished
    assert main(["inspect", str(run_dir), "--json", "--figures", str(tmp_path / "figures")]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures
    assert sorted(figures) == sorted(str(path) for path in (tmp_path / "figures").iterdir())


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """Make any command end with an exception; returns the arguments to call."""

    def fail(error):
        def raise_it(*args, **kwargs):
            raise error

        monkeypatch.setattr("disa.cli.run.run_stages", raise_it)
        return ["run", str(tmp_path / "recipe.yaml")]

    return fail


def test_an_interrupt_exits_with_130_and_says_that_nothing_is_lost(failing, capsys):
    assert main(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "disa: interrupted; run the same command to continue\n"


def test_a_bug_exits_with_1_without_a_traceback(failing, capsys):
    assert main(failing(RuntimeError("first\nsecond"))) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "disa: internal error, RuntimeError: first second"
    assert "--debug" in second


def test_a_bug_with_debug_raises(failing):
    with pytest.raises(RuntimeError, match="broken"):
        main([*failing(RuntimeError("broken")), "--debug"])


def test_what_the_user_can_fix_exits_with_2_on_one_line_whatever_the_message(failing, capsys):
    error = DisaError("found\nthis", where="file,\trow 3", fix="do\nthat")
    assert main(failing(error)) == 2
    assert capsys.readouterr().err == "disa: file, row 3: found this. Fix: do that\n"


def test_debug_shows_the_traceback_and_the_line(failing, capsys):
    assert main([*failing(DisaError("found this", fix="do that")), "--debug"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "disa: found this. Fix: do that"


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["run"], ["run", "r.yaml", "--until", "9_stage"], ["inspect"], ["run", "r.yaml", "--set"]],
    ids=" ".join,
)
def test_a_command_line_that_cannot_be_parsed_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: disa" in capsys.readouterr().err
