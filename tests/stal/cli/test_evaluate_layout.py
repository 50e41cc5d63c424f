"""`stal evaluate-layout`: what it prints, and how it fails."""


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
