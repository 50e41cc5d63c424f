"""Texts from elsewhere mean themselves wherever they are shown."""

import io
import warnings

import pytest
from matplotlib.figure import Figure

from stal.echo import csv_cell, harmless, markdown, markdown_table, one_line, plot_label


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat, ein „Ö“, 円 😀\n\t", "a cat, ein „Ö“, 円 😀\n\t"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb", "a\\rb"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2066\u2069", "\\u2066\\u2069"),
        ("a\u2028b", "a\\u2028b"),
        ("\ud800", "\\ud800"),
        ("\x7f\0", "\\x7f\\x00"),
    ],
)
def test_what_a_terminal_obeys_is_escaped(text, shown):
    assert harmless(text) == shown


def test_a_message_is_one_line_and_not_endless():
    assert one_line(" first\n  second\x85third\r\n") == "first second third"
    assert len(one_line("x" * 10**6)) < 2100


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a cat", "a cat"),
        ("a|b", "a\\|b"),
        ("a\\|b", "a\\\\\\|b"),
        ("`rm`", "\\`rm\\`"),
        ("a\n| b |\n", "a \\| b \\|"),
        ("<img src=x onerror=y>", "&lt;img src=x onerror=y&gt;"),
        ("&lt;", "&amp;lt;"),
        ("[x](javascript:y)", "[x]\\(javascript:y)"),
        ("80.0% [28.4%, 99.5%]", "80.0% [28.4%, 99.5%]"),
    ],
)
def test_no_text_breaks_a_table(text, cell):
    assert markdown(text) == cell
    lines = markdown_table(["", "head"], [["name", text]])
    assert lines == ["| | head |", "|---|---|", f"| name | {cell} |"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\n-1"])
def test_no_text_is_a_formula(text):
    assert csv_cell(text) == f"'{text.strip()}"
    assert csv_cell(f"a {text}").startswith("a ")


@pytest.mark.parametrize(
    "text", ["$", "a $x_{y", "$\\frac$", "a $1 and a $2 coin", "\\$", "a\nb\x1b"]
)
def test_labels_of_plots_are_no_mathematics(text):
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], label=plot_label(text))
    axes.set_title(plot_label(text))
    axes.legend()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png")
