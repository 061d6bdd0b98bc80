"""Where randomness comes from.

Training draws from one ``torch.Generator``. Sampling for a user draws each sample's whole path from
a stream of its own, so that sample ``i`` of seed ``s`` is the same in a batch of 1 or of 1,000.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


class Noise(ABC):
    """A source of standard normals and uniforms for a batch."""

    @abstractmethod
    def normal(self, like: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Standard normals of the shape, dtype and device of ``like``."""

    @abstractmethod
    def uniform(self, like: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        """Uniforms on [0, 1), one per sample."""

    @abstractmethod
    def uniforms(self, like: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """Uniforms on [0, 1) of the shape and device of ``like``, in float64."""

    def of(self, chosen: Bool[Tensor, " S"]) -> "Noise":
        """The source of some of a batch's streams; one source without streams serves all."""
        return self


class GeneratorNoise(Noise):
    """Draws from one generator (None: torch's global one)."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    def normal(self, like: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        return torch.randn(
            like.shape, dtype=like.dtype, device=like.device, generator=self.generator
        )

    def uniform(self, like: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        return torch.rand(
            like.shape[0], dtype=like.dtype, device=like.device, generator=self.generator
        )

    def uniforms(self, like: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        return torch.rand(
            like.shape, dtype=torch.float64, device=like.device, generator=self.generator
        )


class StreamNoise(Noise):
    """One stream per sample: sample ``i`` sees the same numbers whatever the batch.

    A batch may hold several rows of each stream, next to each other: the particles of a system.

    Arguments:
        seed: seed of the whole draw.
        indices: which samples of that draw the batch holds.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.streams = [_stream(seed, i) for i in indices]

    def normal(self, like: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        shape = (len(like) // len(self.streams), *like.shape[1:])
        drawn = [torch.randn(shape, generator=g) for g in self.streams]
        return torch.cat(drawn).to(dtype=like.dtype, device=like.device)

    def uniform(self, like: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
        shape = (len(like) // len(self.streams),)
        # Resampling asks in float64, where a grid of 2^-24 would misplace the smallest weights.
        wide = torch.promote_types(like.dtype, torch.float32)
        drawn = torch.cat([torch.rand(shape, generator=g, dtype=wide) for g in self.streams])
        return drawn.to(dtype=like.dtype, device=like.device)

    def uniforms(self, like: Shaped[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        shape = (len(like) // len(self.streams), *like.shape[1:])
        drawn = [torch.rand(shape, generator=g, dtype=torch.float64) for g in self.streams]
        return torch.cat(drawn).to(like.device)

    def of(self, chosen: Bool[Tensor, " S"]) -> "StreamNoise":
        """The chosen streams, not copies of them."""
        part = StreamNoise(0, ())
        part.streams = [g for g, keep in zip(self.streams, chosen.tolist(), strict=True) if keep]
        return part


def _stream(seed: int, index: int) -> torch.Generator:
    """A generator seeded by a mix of (seed, index); splitmix64's finaliser spreads close inputs."""
    z = (seed * 0x9E3779B97F4A7C15 + index + 1) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return torch.Generator().manual_seed((z ^ (z >> 31)) & 0x7FFFFFFFFFFFFFFF)


@contextmanager
def seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Inside, what foreign code draws from torch's global CPU generator comes from ``generator``.

    The global state is put back at the end; with None nothing changes.
    """
    if generator is None:
        yield
        return
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        yield
