"""Randomness: reproducible, and for a user independent of the batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftilt.noise import GeneratorNoise, StreamNoise, seeded


@given(
    seed=st.integers(0, 2**63),
    batch=st.lists(st.integers(0, 10_000), min_size=1, max_size=5, unique=True),
)
def test_a_sample_does_not_depend_on_its_batch(seed: int, batch: list[int]):
    together = StreamNoise(seed, batch)
    normals = [together.normal(torch.empty(len(batch), 2, 3)) for _ in range(3)]
    uniforms = together.uniform(torch.empty(len(batch), 2, 3))
    for row, index in enumerate(batch):
        alone = StreamNoise(seed, [index])
        for drawn in normals:
            assert torch.equal(drawn[row : row + 1], alone.normal(torch.empty(1, 2, 3)))
        assert torch.equal(uniforms[row : row + 1], alone.uniform(torch.empty(1, 2, 3)))


def test_streams_of_close_seeds_and_indices_are_independent():
    """Correlations of 100 neighbouring streams, within 5 standard errors.

    False alarm rate: 4,950 pairs at 5.8e-7 each, below 0.003.
    """
    length = 2_000
    like = torch.empty(10, length)
    drawn = torch.cat([StreamNoise(seed, range(10)).normal(like) for seed in range(10)])
    correlation = drawn @ drawn.T / length - torch.eye(100)
    correlation.fill_diagonal_(0)
    assert float(correlation.abs().max()) < 5 / length**0.5


@pytest.mark.parametrize("noise", [GeneratorNoise(torch.Generator().manual_seed(2)), None])
def test_normals_and_uniforms_have_their_laws(noise: GeneratorNoise | None):
    """First two moments within 5 standard errors (false alarm rate below 3e-6)."""
    count = 20_000
    noise = StreamNoise(3, range(count)) if noise is None else noise
    normal = noise.normal(torch.empty(count, 2, dtype=torch.float64))
    uniform = noise.uniform(normal)
    assert normal.dtype == uniform.dtype == torch.float64 and uniform.shape == (count,)
    assert abs(float(normal.mean())) < 5 / (2 * count) ** 0.5
    assert abs(float((normal**2).mean()) - 1) < 5 * (2 / (2 * count)) ** 0.5
    assert abs(float(uniform.mean()) - 0.5) < 5 * (1 / 12 / count) ** 0.5
    assert float(uniform.min()) >= 0 and float(uniform.max()) < 1


def test_foreign_code_draws_from_the_given_generator():
    def drawn(seed: int) -> torch.Tensor:
        with seeded(torch.Generator().manual_seed(seed)):
            return torch.randn(4)

    state = torch.random.get_rng_state()
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    with seeded(None):
        torch.randn(4)
    assert not torch.equal(torch.random.get_rng_state(), state)


def test_two_blocks_from_one_generator_differ():
    generator = torch.Generator().manual_seed(1)
    with seeded(generator):
        first = torch.randn(4)
    with seeded(generator):
        assert not torch.equal(torch.randn(4), first)
