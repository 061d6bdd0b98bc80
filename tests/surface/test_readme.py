"""What the README shows runs as it stands."""

import runpy

import pytest
import torch

from difftilt.cli import COMMANDS, main
from readme import command_lines, python_blocks, reward_file


def test_every_python_block_runs(tmp_path, monkeypatch, capsys, unchecked):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "page.py"
    script.write_text("\n".join(python_blocks()), "utf-8")
    shared = runpy.run_path(str(script))
    assert shared["x"].shape == shared["exact"].shape == (16, 2)
    assert "log Z" in capsys.readouterr().out


def test_the_reward_file_scores_brightness_below_its_bound(tmp_path):
    script = tmp_path / "reward.py"
    script.write_text(reward_file(), "utf-8")
    shared = runpy.run_path(str(script))
    log_r = shared["log_reward"](torch.full((3, 1, 4, 4), 0.2))
    torch.testing.assert_close(log_r, torch.zeros(3))
    assert (shared["log_reward"](torch.randn(64, 1, 4, 4)) <= 0).all()


def test_commands_are_shown():
    assert {words[0] for words in command_lines()} == set(COMMANDS) - {"report", "bench", "list"}


@pytest.mark.parametrize("words", command_lines(), ids=" ".join)
def test_every_command_line_parses(words, tmp_path, monkeypatch, capsys):
    """A training prints its config; the others get so far as to miss the folder they name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward.py").write_text(reward_file())
    if words[0] == "train":
        main([*words, "--dry-run"])
        assert '"recipe": "custom"' in capsys.readouterr().out
        return
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    missing = "FOLDER is neither" if words[0] == "doctor" else "there is no run in runs/bright"
    complaint = capsys.readouterr().err
    assert missing in complaint or "no pipeline folder at FOLDER" in complaint
