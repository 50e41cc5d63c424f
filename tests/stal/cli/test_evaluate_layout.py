"""`stal evaluate-layout`: tables and failures of small labelled sets."""

from pathlib import Path

from typer.testing import CliRunner

from stal.cli.evaluate_layout import evaluate_layout


def test_command_prints_a_table_and_failures(gpt: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(evaluate_layout)
    result = CliRunner().invoke(app, ["--gpt", str(gpt), "--failures", "5"])
    assert result.exit_code == 0
    assert "| gpt.txt | all | 4/5 80.0% [28.4%, 99.5%] | 2/3 66.7%" in result.output
    assert "    zebra | A dog is above a cat." in result.output
    assert CliRunner().invoke(app, []).exit_code == 2
    unknown = CliRunner().invoke(app, ["--gpt", str(gpt), "--engine", "oracle"])
    assert unknown.exit_code == 2


def test_evaluate_layout_prints_both_tables(run, tmp_path):
    (tmp_path / "a.txt").write_text("The dog is left of the car.\n")
    code, out, _ = run("evaluate-layout", "--captions", "a.txt")
    assert code == 0
    assert "| a.txt | left of | 2/2 100.0%" in out
    assert "| predictor | 1/1 100.0%" in out


def test_evaluate_layout_refuses(run, tmp_path):
    code, out, _ = run("evaluate-layout", "--help")
    assert code == 0
    assert "--gpt" in out
    assert run("evaluate-layout")[0] == 2
    (tmp_path / "bad.json").write_text("[")
    code, _, err = run("evaluate-layout", "--nsr1k", "bad.json")
    assert (code, err.count("\n")) == (1, 1)
    assert "bad.json must be JSON" in err
