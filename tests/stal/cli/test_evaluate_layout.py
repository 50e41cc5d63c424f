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
