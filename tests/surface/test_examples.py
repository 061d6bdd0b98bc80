"""Every example runs as it stands, at the size of a smoke test, and prints what it promises."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SMOKE = {
    "two_dimensions": {"steps": 4, "samples": 200},
    "image_class": {"steps": 3, "chain_steps": 3, "samples": 8},
    "black_box_reward": {"steps": 4, "samples": 100},
    "latent_generator": {"steps": 4, "samples": 200},
    "infill_a_sentence": {"steps": 2, "prior_steps": 4, "samples": 8},
}
PROMISED = {
    "two_dimensions": ["truth, by rejection", "log Z, defensive"],
    "image_class": ["share of sandals", "is a DDPMPipeline"],
    "black_box_reward": ["truth, by rejection", "log Z"],
    "latent_generator": ["brute force", "log Z"],
    "infill_a_sentence": ["prompt (x, y)", "conditions to be trusted"],
}


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SMOKE) == set(PROMISED)


@pytest.mark.parametrize("name", SMOKE)
def test_an_example_runs(name: str, tmp_path: Path, capsys, unchecked: None):
    sizes = SMOKE[name] | ({"folder": tmp_path} if name == "image_class" else {})
    result = example(name).main(**sizes)
    printed = capsys.readouterr().out
    assert [words for words in PROMISED[name] if words not in printed] == []
    assert name != "image_class" or (result / "model_index.json").is_file()


@pytest.mark.parametrize("name", SMOKE)
def test_an_example_is_short_and_teaches(name: str):
    text = (EXAMPLES / f"{name}.py").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    assert f"python examples/{name}.py" in (example(name).__doc__ or "")
