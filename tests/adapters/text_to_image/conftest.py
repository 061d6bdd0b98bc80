"""Tiny pipelines of every family, saved to disk once."""

import json
from pathlib import Path

import pytest

import tiny_pipelines


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of folders, one for each of ``tiny_pipelines.BUILDERS``."""
    folder = tmp_path_factory.mktemp("pipelines")
    for name in tiny_pipelines.BUILDERS:
        tiny_pipelines.tiny(name).save_pretrained(folder / name)
    index = folder / "dit" / "model_index.json"  # published ones name their classes there
    labels = {"id2label": tiny_pipelines.CLASSES}
    index.write_text(json.dumps(json.loads(index.read_text()) | labels))
    return folder
