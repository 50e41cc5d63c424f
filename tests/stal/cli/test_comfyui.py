"""`stal comfyui`: one file in a ComfyUI, and nothing of anybody else's."""

from pathlib import Path

import pytest

from stal.integrations.comfyui.install import ENTRY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What of a ComfyUI is looked at."""
    root = tmp_path / "ComfyUI"
    (root / "comfy").mkdir(parents=True)
    (root / "custom_nodes").mkdir()
    (root / "nodes.py").touch()
    (root / "comfy" / "model_patcher.py").touch()
    return root


def test_it_writes_one_file_and_says_how_to_undo_that(run, folder):
    code, out, err = run("comfyui", folder)
    target = folder / "custom_nodes" / "stal"
    assert (code, err) == (0, "")
    assert f"rm -r {target}" in out
    assert [each.name for each in target.iterdir()] == ["__init__.py"]
    assert (target / "__init__.py").read_text() == ENTRY
    assert len(ENTRY.splitlines()) < 20


def test_again_is_as_once(run, folder):
    target = folder / "custom_nodes" / "stal"
    run("comfyui", folder)
    # As an earlier version may have written it, and after ComfyUI has run.
    (target / "__init__.py").write_text(ENTRY.splitlines()[0] + "\nold = True\n")
    (target / "__pycache__").mkdir()
    assert run("comfyui", folder)[0] == 0
    assert (target / "__init__.py").read_text() == ENTRY


def test_a_folder_that_is_no_comfyui_is_refused(run, tmp_path):
    code, _, err = run("comfyui", tmp_path)
    assert code == 1
    assert "path must be a folder of ComfyUI" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["__init__.py", "nodes.py"])
def test_files_of_others_stay(run, folder, name):
    target = folder / "custom_nodes" / "stal"
    target.mkdir()
    (target / name).write_text("theirs = True\n")
    code, _, err = run("comfyui", folder)
    assert code == 1
    assert f"got a folder with {name} from somebody else" in err
    assert [(each.name, each.read_text()) for each in target.iterdir()] == [
        (name, "theirs = True\n")
    ]


def test_a_link_is_not_followed(run, folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "custom_nodes" / "stal").symlink_to(elsewhere)
    code, _, err = run("comfyui", folder)
    assert code == 1
    assert "must be free for the nodes" in err
    assert list(elsewhere.iterdir()) == []
