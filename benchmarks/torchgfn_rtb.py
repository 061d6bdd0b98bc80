"""Relative trajectory balance beside torchgfn's, on the 25 -> 9 modes problem.

Speed: both sides evaluate a prior network and a posterior network of one architecture (the path
integral sampler's perceptron of width 64, written again below) on 500 paths of 100 steps, with
on-policy paths, a learned log Z and Adam. Part of the gain is that our side asks the embedding of
the time once per rollout, about all steps, instead of once per state (the ``embedding`` of
``NetworkDenoiser`` and ``DriftKernel``); the function and its parameters are the same. Two
processes with one thread each take turns of a few updates, so that a busy machine slows both.

Time to a total variation of 0.05 between the modes' frequencies and their masses under the exact
posterior of the side's own discrete chain, which is what it can reach: difftilt's by quadrature,
torchgfn's by weighting 100,000 draws of its prior. difftilt runs with the settings that it
recommends for this problem (exact prior, 20 steps), torchgfn with its example's (100 steps,
exploration noise 0.5 going down to 0), its prior fitted beforehand by bridge regression. Neither is
billed for its prior or for the checks; the bill is CPU time, of one thread, so that a busy machine
does not change it.

torchgfn needs numpy < 2, so it lives in an environment of its own:

    python3 -m venv gfn-venv
    gfn-venv/bin/pip install torch==2.13.0
    gfn-venv/bin/pip install torchgfn==2.4.1 matplotlib scipy tqdm
    python benchmarks/torchgfn_rtb.py --peer-python gfn-venv/bin/python --minutes 10
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BATCH, STEPS, WIDTH, HARMONICS = 500, 100, 64, 64
BAR, WANTED = 4.0, 0.05
TRUTH_DRAWS = 100_000
SIGMA, TIME_SCALE = 2.0, 5.0
CUTS = (-7.5, -2.5, 2.5, 7.5)


class TimeEmbedding(nn.Module):
    """``time (B,) -> (B, width)``: sines and cosines of shifted phases, and two layers."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.randn(1, HARMONICS))
        self.register_buffer("frequencies", torch.linspace(0.1, 100, HARMONICS)[None])
        self.layers = nn.Sequential(
            nn.Linear(2 * HARMONICS, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)
        )

    def forward(self, time: Tensor) -> Tensor:
        angles = time[:, None] * self.frequencies + self.phase
        return self.layers(torch.cat([angles.sin(), angles.cos()], 1))


class StatePerceptron(nn.Module):
    """``(x (B, 2), embedded time (B, width)) -> (B, 2)``: torchgfn's example's, after its time."""

    def __init__(self, zero: bool) -> None:
        super().__init__()
        self.state = nn.Linear(2, WIDTH)
        self.joint = nn.Sequential(
            nn.GELU(),
            nn.Linear(WIDTH, WIDTH),
            nn.GELU(),
            nn.Linear(WIDTH, WIDTH),
            nn.GELU(),
            nn.Linear(WIDTH, 2),
        )
        if zero:
            nn.init.zeros_(self.joint[-1].weight)
            nn.init.zeros_(self.joint[-1].bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.joint(self.state(x) + time)


def mode_masses(x: Tensor, log_w: Tensor | None = None) -> Tensor:
    """Shares of the 5 × 5 cells among points x (data units), weighted if there are weights."""
    column, row = torch.bucketize(x.contiguous(), torch.tensor(CUTS, dtype=x.dtype)).unbind(1)
    log_w = torch.zeros(len(x)) if log_w is None else log_w
    share = torch.softmax(log_w.double(), 0)
    return share.new_zeros(25).index_add(0, 5 * column + row, share)


def mode_distance(x: Tensor, wanted: Tensor) -> float:
    """Total variation between the cells' frequencies of x (data units) and their masses."""
    return float(0.5 * (mode_masses(x) - wanted).abs().sum())


class Own:
    """difftilt's side."""

    def __init__(self) -> None:
        from difftilt.chains.chain import Chain
        from difftilt.denoisers import NetworkDenoiser
        from difftilt.diffusions.gaussian import GaussianDiffusion
        from difftilt.kernels.networks import DriftKernel
        from difftilt.schedules import VariancePreserving
        from difftilt.tasks.exact.grid25 import log_reward_9of25
        from difftilt.training.plan import RTB, BehaviourWeights, Training
        from difftilt.training.state import TrainingState
        from difftilt.training.steps import training_step

        diffusion = GaussianDiffusion(VariancePreserving().levels(STEPS))
        # Every step a law, as on the other side.
        diffusion = diffusion.with_std(1, float(diffusion.levels.sigma[1]))
        network = StatePerceptron(zero=False).requires_grad_(False)
        embedding = TimeEmbedding().requires_grad_(False)
        prior = NetworkDenoiser(network, "v_prediction", embedding=embedding)
        kernel = DriftKernel(StatePerceptron(zero=True), diffusion, embedding=TimeEmbedding())
        plan = Training(
            batch=BATCH,
            chunk=STEPS * BATCH,
            warm_start=0.0,
            objective=RTB(log_z="learned"),
            behaviour=BehaviourWeights(on_policy=1.0, pool=0.0),
        )
        chain = Chain(prior, diffusion, (2,)).tilted(kernel)
        self.state = TrainingState(chain, lambda x, condition: log_reward_9of25(x), 1.0, plan)
        self.update: Callable[[], Any] = lambda: training_step(self.state)

    def time_to_wanted(self, seconds: float) -> dict[str, float | None]:
        """CPU seconds of training until the mode distance is at most ``WANTED``."""
        from difftilt.chains.rollouts import rollout
        from difftilt.posteriors import Prior
        from difftilt.recipes.exact.recipe import PERCEPTRON, build, recommended
        from difftilt.tasks.exact.grid25 import SCALE
        from difftilt.training.steps import training_step

        problem = build("gmm9of25")
        target = Prior(problem.chain).tilt(problem.log_reward, 1.0, problem.log_bound)
        state = target.state(target.posterior(PERCEPTRON.build()), recommended(60.0))

        def distance() -> float:
            state.use_average()
            x = SCALE * rollout(state.chain, 10_000, record=False).x_0
            found = mode_distance(x, problem.truth.label_probabilities)
            state.use_average()
            return found

        def update() -> None:
            start = time.process_time()
            training_step(state)
            state.elapsed += time.process_time() - start

        return until_wanted(update, distance, min(seconds, 60.0), every=20)


class Peer:
    """torchgfn's side, by its public classes as its example uses them."""

    def __init__(self) -> None:
        from gfn.estimators import PinnedBrownianMotionForward
        from gfn.gflownet import RelativeTrajectoryBalanceGFlowNet
        from gfn.gym.diffusion_sampling import DiffusionSampling
        from gfn.samplers import Sampler
        from gfn.utils.modules import DiffusionPISGradNetForward

        def estimator() -> Any:
            module = DiffusionPISGradNetForward(s_dim=2, zero_init=True, t_scale=TIME_SCALE)
            return PinnedBrownianMotionForward(2, module, SIGMA, STEPS)

        self.env = DiffusionSampling("gmm25_posterior9", None, STEPS, debug=False)
        self.prior, self.posterior = estimator(), estimator()
        self.prior.requires_grad_(False)
        self.flow = RelativeTrajectoryBalanceGFlowNet(self.posterior, self.prior, debug=False)
        self.sampler = Sampler(self.posterior)
        self.optimiser = torch.optim.Adam(
            [
                {"params": self.flow.pf.parameters(), "lr": 1e-3},
                {"params": self.flow.logz_parameters(), "lr": 1e-1},
            ]
        )
        self.exploration, self.done = 0.0, 0

    def update(self) -> None:
        """One update of the example's loop."""
        noise = torch.tensor(self.exploration * max(0.0, 1 - self.done / 4500))
        trajectories = self.sampler.sample_trajectories(
            self.env, n=BATCH, save_logprobs=False, exploration_std=noise
        )
        self.optimiser.zero_grad()
        self.flow.loss(self.env, trajectories, recalculate_all_logprobs=True).backward()
        self.optimiser.step()
        self.done += 1

    def fit_prior(self, updates: int = 4000, batch: int = 2000) -> None:
        """Regress the drift ``E[(x_1 - x_t) / (1 - t)]`` of the mixture of Brownian bridges."""
        module, scale = self.prior.module.requires_grad_(True), SIGMA * math.sqrt(TIME_SCALE)
        optimiser = torch.optim.Adam(module.parameters(), lr=2e-3)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
        for _ in range(updates):
            end = self.env.target.prior.sample(batch)
            t = torch.randint(STEPS, (batch, 1)) / STEPS
            x = t * end + scale * (t * (1 - t)).sqrt() * torch.randn_like(end)
            wanted = (end - x) / (1 - t)
            # Weighted so that the noise of the target is as large at every t.
            loss = ((module(torch.cat([x, t], 1)) - wanted).square() * (1 - t)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            decay.step()
        module.requires_grad_(False)
        self.posterior.module.load_state_dict(module.state_dict())

    def time_to_wanted(self, seconds: float) -> dict[str, float | None]:
        """CPU seconds of training until the mode distance is at most ``WANTED``."""
        self.fit_prior()
        self.exploration, self.done = 0.5, 0

        @torch.no_grad()
        def drawn(sampler: Any, n: int) -> Tensor:
            paths = sampler.sample_trajectories(self.env, n=n, save_logprobs=False)
            return paths.terminating_states.tensor[:, :-1]

        from gfn.samplers import Sampler

        prior = torch.cat([drawn(Sampler(self.prior), 5000) for _ in range(TRUTH_DRAWS // 5000)])
        wanted = mode_masses(prior, self.env.target.log_reward(prior))

        def distance() -> float:
            return mode_distance(drawn(self.sampler, 10_000), wanted)

        return until_wanted(self.update, distance, seconds, every=25)


def until_wanted(
    update: Callable[[], None], distance: Callable[[], float], seconds: float, every: int
) -> dict[str, float | None]:
    """Update until the distance is small; the checks, every so many updates, are not billed."""
    spent, updates, found = 0.0, 0, distance()
    start = found
    while found > WANTED and spent < seconds:
        begun = time.process_time()
        for _ in range(every):
            update()
        spent, updates = spent + time.process_time() - begun, updates + every
        found = distance()
    reached = spent if found <= WANTED else None
    return {"seconds": reached, "spent": spent, "updates": updates, "tv": found, "tv_start": start}


def work(side: str) -> None:
    """Answer requests, a JSON object a line: ``{"updates": n}`` or ``{"seconds": s}``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # What the other libraries print must not get between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    own = Own() if side == "own" else Peer()
    for line in sys.stdin:
        request = json.loads(line)
        if "seconds" in request:
            answer: Any = own.time_to_wanted(request["seconds"])
        else:
            answer = []
            for _ in range(request["updates"]):
                wall, processor = time.perf_counter(), time.process_time()
                own.update()
                answer.append([time.perf_counter() - wall, time.process_time() - processor])
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """A process that runs one side and waits for requests."""

    def __init__(self, python: str, side: str) -> None:
        self.process = subprocess.Popen(
            [python, "-O", __file__, "--worker", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: dict[str, Any]) -> Any:
        """The answer to one request."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit("a worker stopped; its message is above")
        return json.loads(answer)


def compare(peer_python: str, turns: int, minutes: float) -> list[dict[str, Any]]:
    """Both sides' updates per second and time to the wanted distance."""
    workers = {"difftilt": Worker(sys.executable, "own"), "torchgfn": Worker(peer_python, "peer")}
    times: dict[str, list[list[float]]] = {name: [] for name in workers}
    for worker in workers.values():
        worker.ask({"updates": 2})
    for _ in range(turns):
        for name, worker in workers.items():
            times[name] += worker.ask({"updates": 3})
    rows = []
    for name, worker in workers.items():
        wall, processor = (statistics.median(v) for v in zip(*times[name], strict=True))
        row = {"library": name, "update_seconds": wall, "update_cpu_seconds": processor}
        if minutes:
            row |= {"to_wanted": worker.ask({"seconds": 60 * minutes})}
        rows.append(row)
        assert worker.process.stdin is not None
        worker.process.stdin.close()
    return rows


def render(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, and the ratio."""
    lines = ["library   s/update  CPU s/update  updates/s  CPU time to mode TV <= 0.05"]
    for row in rows:
        wall, processor = row["update_seconds"], row["update_cpu_seconds"]
        reached = row.get("to_wanted")
        text = "not asked"
        if reached:
            text = (
                f"{reached['seconds']:.1f} s"
                if reached["seconds"] is not None
                else (f"not within {reached['spent']:.0f} s (TV {reached['tv']:.3f})")
            )
        lines.append(
            f"{row['library']:<9} {wall:>8.3f} {processor:>13.3f} {1 / wall:>10.2f}  {text}"
        )
    own, peer = rows
    wall = peer["update_seconds"] / own["update_seconds"]
    processor = peer["update_cpu_seconds"] / own["update_cpu_seconds"]
    lines.append(f"updates per second: {wall:.2f} x (CPU {processor:.2f} x); bar {BAR:.0f} x")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="difftilt beside torchgfn: updates per second, time to the modes."
    )
    parser.add_argument("--peer-python", help="python of an environment with torchgfn")
    parser.add_argument("--turns", type=int, default=8, help="turns of three updates each")
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="bound of the CPU time to TV; 0: skip"
    )
    parser.add_argument("--json-file", type=Path)
    parser.add_argument("--worker", choices=("own", "peer"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        work(chosen.worker)
        return
    if chosen.peer_python is None:
        parser.error("--peer-python is needed; the head of this file says how to make it")
    rows = compare(chosen.peer_python, chosen.turns, chosen.minutes)
    print(render(rows))
    if chosen.json_file is not None:
        chosen.json_file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
