"""Wall time of a training step beside the bare network calls that its algorithm needs.

One update on B paths of N steps, B_own of them drawn anew, cannot do with less than

    N prior calls and N posterior calls on B_own states without a graph        (the new paths)
    forward and backward of the posterior on N B states, in the plan's chunks  (the gradient)
    one step of the optimiser,

less the posterior calls without a graph where all paths are new and the gradient takes one chunk:
then λ and its gradient are found while the paths are drawn. (The column "two passes" keeps those
calls, which any algorithm that draws first and visits later has to make.) Where the gradient takes
more than one chunk, add N posterior calls without a graph on the paths that were not drawn anew:
the loss needs their log-ratios before the first chunk. "Bare" is exactly this on stored inputs of
the same shapes: ``network.forward``, autograd and ``Adam.step``, nothing else. No sampling,
densities, rewards, losses, gradient clipping or moving average.
Steps and bare calls alternate in one process, so that a busy machine slows both.

| case | prior | posterior |
|---|---|---|
| mlp | the 25 modes in closed form, N = 20, B = 512 | ``VectorKernel`` K = 4, width 96 |
| unet | a small UNet2DModel, 16 × 16, N = 10, B = 8 | a full copy of it |
| tokens | a transformer (4 x 128) of V = 222 words, L = 50, 12 reveals, B = 8 | a full copy of it |
| vocabulary | the same of V = 50,000 words | a full copy of it |
| text_to_image | Stable Diffusion, 4 × 16 × 16, guided, N = 10, B = 8 | adapters on attention |

A bare call of text-to-image is the UNet on both halves of guidance at once, with the adapters off
or on; no encoder of prompts (asked once) and no decoder (the reward's).

A bare call of a network of tokens is its body on whole states and its head on the one position that
a step reveals: no log-softmax, no draw.

With ``pool`` half of the paths come from a full pool to which nothing is added (``pool_fresh=0``):
no network is called for them before the gradient.

    python benchmarks/overhead.py --repeats 60 --json-file overhead.json
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from difftilt.chains.chain import Chain
from difftilt.diffusions.masked import GENERATED, GIVEN, MaskedDiffusion, canvas
from difftilt.forms import FullCopy, LoRA
from difftilt.kernels.networks import DenoiserKernel, VectorKernel
from difftilt.loading import load
from difftilt.models.token_transformer import TokenTransformer, TransformerSize
from difftilt.posteriors import Perceptron, Prior, Sources
from difftilt.token_denoisers import TokenDenoiser, TokenNetwork
from difftilt.training.plan import RTB, BehaviourWeights, Optimisation, Replaying, Training
from difftilt.training.state import TrainingState
from difftilt.training.steps import training_step

BAR = 1.15
FILLING = 10
PATHS = {
    "on-policy": BehaviourWeights(on_policy=1.0, pool=0.0),
    "on-policy + pool": BehaviourWeights(on_policy=0.5, pool=0.5),
}


@dataclass(frozen=True)
class Bare:
    """The networks of a case, as functions of states alone.

    Arguments:
        prior: ``(x_n, n)`` -> the prior network's output.
        posterior: ``(x_n, prior's prediction, n)`` -> the posterior network's output; n an int, or
            one per state.
        inputs: as many random states, and predictions of the prior; None: normal numbers.
    """

    prior: Callable[[Tensor, int], Tensor]
    posterior: Callable[[Tensor, Tensor, Any], Tensor]
    inputs: Callable[[int], tuple[Tensor, Tensor]] | None = None


def plan_of(paths: str, batch: int, chunk: int) -> Training:
    """The plan of a case: balance from the first update, Adam alone."""
    return Training(
        batch=batch,
        chunk=chunk,
        warm_start=0.0,
        objective=RTB(log_z="batch", residual_clip=4.0),
        optimisation=Optimisation(),
        behaviour=PATHS[paths],
        replaying=Replaying(pool_capacity=8 * batch, pool_fresh=0),
    )


def mlp(paths: str) -> tuple[TrainingState, Bare]:
    """The 25-mode problem with the small perceptron that is recommended for it."""
    from difftilt.tasks.exact.grid25 import gmm9of25

    problem = gmm9of25()
    target = Prior(problem.chain).tilt(problem.log_reward)
    posterior = target.posterior(Perceptron(components=4, width=96))
    state = target.state(posterior, plan_of(paths, batch=512, chunk=32_768))
    chain, kernel = state.chain, state.chain.kernel
    assert isinstance(kernel, VectorKernel)
    levels = [chain.diffusion.level(n, chain.like) for n in range(chain.steps + 1)]
    return state, Bare(lambda x, n: chain.denoiser(x, levels[n]), kernel.network)


def unet(paths: str) -> tuple[TrainingState, Bare]:
    """A small UNet2DModel with random weights, and a full copy of it as the posterior."""
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    network = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    prior = load(DDPMPipeline(network, DDPMScheduler()), steps=10)  # type: ignore[arg-type]
    target = prior.tilt(lambda x: -x.square().mean((1, 2, 3)))
    state = target.state(target.posterior(FullCopy()), plan_of(paths, batch=8, chunk=32))
    kernel: Any = state.chain.kernel
    assert isinstance(kernel, DenoiserKernel)
    own: Any = kernel.denoiser
    times = state.chain.diffusion.levels.time.float()

    def call(net: nn.Module, x: Tensor, n: Any) -> Tensor:
        return net(x, times[n].expand(len(x))).sample

    return state, Bare(
        lambda x, n: call(network, x, n), lambda x, prediction, n: call(own.network, x, n)
    )


class Words(TokenNetwork):
    """A small transformer of words, told no time."""

    def __init__(self, vocab_size: int, length: int) -> None:
        super().__init__(vocab_size, vocab_size)
        size = TransformerSize(width=128, layers=4, heads=4)
        self.network = TokenTransformer(vocab_size + 1, length, vocab_size, size)

    def hidden(self, ids: Tensor, time: Tensor) -> Tensor:
        """The body."""
        return self.network.hidden(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """The head."""
        return self.network.last(hidden)


def words(paths: str, vocab_size: int = 222) -> tuple[TrainingState, Bare]:
    """Twelve words in the middle of fifty, and a full copy of the network as the posterior."""
    length, generated = 50, 12
    denoiser = TokenDenoiser(Words(vocab_size, length)).eval().requires_grad_(False)
    chain = Chain(denoiser, MaskedDiffusion(vocab_size, generated), (length,))
    target = Prior(chain).tilt(lambda x, condition: -(x[:, 30] % 7).float())
    roles = torch.full((length,), GIVEN)
    roles[24 : 24 + generated] = GENERATED

    def conditions(count: int, generator: torch.Generator) -> Tensor:
        ids = torch.randint(vocab_size, (count, length), generator=generator)
        return canvas(ids, roles.expand(count, -1))

    plan = replace(plan_of(paths, batch=8, chunk=96), paths_per_condition=8)
    state = target.state(target.posterior(FullCopy()), plan, Sources(conditions=conditions))
    kernel: Any = state.chain.kernel

    def call(network: TokenNetwork, x: Tensor) -> Tensor:
        return network.logits(network.hidden(x, x[:, 0])[:, 30])

    return state, Bare(
        lambda x, n: call(denoiser.network, x),
        lambda x, prediction, n: call(kernel.denoiser.network, x),
        lambda count: (torch.randint(vocab_size, (count, length)), torch.zeros(count)),
    )


def vocabulary(paths: str) -> tuple[TrainingState, Bare]:
    """The same with the vocabulary of a language model."""
    return words(paths, vocab_size=50_000)


def text_to_image(paths: str) -> tuple[TrainingState, Bare]:
    """A small Stable Diffusion with random weights, and adapters of rank 4 as the posterior."""
    from pictures import small_pipeline

    prior = load(small_pipeline(16, (32, 64)), steps=10, guidance_scale=7.5)
    task = prior.draw(["a cat", "a dog"], lambda x: -x.square().mean((1, 2, 3)))
    # A bare update decodes nothing, so neither does this reward.
    target = replace(task.target, prior=replace(task.target.prior, decode=None))
    plan = replace(plan_of(paths, batch=8, chunk=16), paths_per_condition=4)
    state = target.state(target.posterior(LoRA(rank=4)), plan, task.sources)
    kernel: Any = state.chain.kernel
    network, table = prior.model.family.network, prior.model.table
    times = state.chain.gaussian.levels.time.long()

    def call(x: Tensor, n: Any) -> Tensor:
        rows = torch.tensor([0, 1]).repeat_interleave(len(x))
        time = times[n].expand(len(x)).repeat(2)
        text = table.of(rows)["text"]
        return network(torch.cat([x, x]), time, encoder_hidden_states=text).sample

    def adapted(x: Tensor, prediction: Tensor, n: Any) -> Tensor:
        with kernel.denoiser.active():
            return call(x, n)

    return state, Bare(call, adapted)


CASES = {
    "mlp": mlp,
    "unet": unet,
    "tokens": words,
    "vocabulary": vocabulary,
    "text_to_image": text_to_image,
}


def bare_update(state: TrainingState, bare: Bare, two_passes: bool = False) -> Callable[[], None]:
    """The bare calls of one update of a training's plan, on random inputs."""
    chain, plan = state.chain, state.plan
    shares = plan.behaviour
    own = round(plan.batch * shares.on_policy / (shares.on_policy + shares.pool))
    steps = torch.tensor(chain.density_steps).repeat_interleave(plan.batch)
    if bare.inputs is None:
        x, prediction = torch.randn(2, len(steps), *chain.event_shape).unbind()
    else:
        x, prediction = bare.inputs(len(steps))
    # Training's own optimiser without the learned log Z, which this objective does not use.
    optimiser = torch.optim.Adam(state.parameters, lr=0.0)
    ones: dict[int, Tensor] = {}
    drawn_with_graph = own == plan.batch and len(steps) <= plan.chunk and not two_passes

    def gradient(rows: slice) -> None:
        output = bare.posterior(x[rows], prediction[rows], steps[rows])
        seed = ones.setdefault(len(output), torch.ones_like(output))
        output.backward(seed)

    def update() -> None:
        with torch.no_grad():
            for n in range(chain.steps, 0, -1):
                guess = bare.prior(x[:own], n)
                if not drawn_with_graph:
                    bare.posterior(x[:own], guess, n)
            if len(steps) > plan.chunk:
                for start in range(own * len(chain.density_steps), len(steps), plan.chunk):
                    rows = slice(start, start + plan.chunk)
                    bare.posterior(x[rows], prediction[rows], steps[rows])
        optimiser.zero_grad(set_to_none=True)
        for start in range(0, len(steps), plan.chunk):
            gradient(slice(start, start + plan.chunk))
        optimiser.step()

    return update


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU milliseconds of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - processor)


def compare(case: str, paths: str, repeats: int, filling: int = FILLING) -> dict[str, Any]:
    """One row: medians of alternating steps and bare updates."""
    torch.manual_seed(0)
    state, bare = CASES[case](paths)
    update, both = bare_update(state, bare), bare_update(state, bare, two_passes=True)
    # Fills the pool, and lets every allocation happen once.
    for _ in range(filling):
        training_step(state)
        update()
    turns = (lambda: training_step(state), update, both)
    rounds = [[timed(turn) for turn in turns] for _ in range(repeats)]
    columns = ("step_ms", "step_cpu_ms", "bare_ms", "bare_cpu_ms", "two_ms", "two_cpu_ms")
    values = zip(*(sum(each, ()) for each in rounds), strict=True)
    row = {k: statistics.median(v) for k, v in zip(columns, values, strict=True)}
    return {
        "case": case,
        "paths": paths,
        **{k: round(v, 2) for k, v in row.items()},
        "ratio": round(row["step_ms"] / row["bare_ms"], 3),
        "cpu_ratio": round(row["step_cpu_ms"] / row["bare_cpu_ms"], 3),
        "two_passes": round(row["step_cpu_ms"] / row["two_cpu_ms"], 3),
    }


def main(
    cases: tuple[str, ...] = tuple(CASES),
    paths: tuple[str, ...] = tuple(PATHS),
    repeats: int = 40,
    filling: int = FILLING,
    threads: int = 1,
    json_file: Path | None = None,
) -> None:
    """Training steps beside bare network calls.

    Args:
        cases: "mlp", "unet", "tokens", "vocabulary", "text_to_image".
        paths: "on-policy", "on-policy + pool".
        repeats: alternations; medians are shown.
        filling: updates before the first that is timed; they fill the pool.
        threads: of torch.
        json_file: write the rows there.
    """
    torch.set_num_threads(threads)
    heads = f"{'case':<13} {'paths':<17} {'step ms':>8} {'bare ms':>8} {'ratio':>6}"
    print(f"{heads} {'CPU ratio':>9} {'two passes':>10}")
    rows = []
    for case in cases:
        for kind in paths:
            r = compare(case, kind, repeats, filling)
            rows.append(r)
            times = f"{r['step_ms']:>8.1f} {r['bare_ms']:>8.1f} {r['ratio']:>6.3f}"
            ratios = f"{r['cpu_ratio']:>9.3f} {r['two_passes']:>10.3f}"
            print(f"{case:<13} {kind:<17} {times} {ratios}", flush=True)
    print(f"bar: ratio <= {BAR}")
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
