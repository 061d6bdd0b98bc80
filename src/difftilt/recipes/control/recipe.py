"""Offline control: the best actions that stay inside the data.

    μ(a | s), a diffusion policy cloned from logged data;   Q(s, a), a critic learned from it
    ->  π(a | s) = μ(a | s) exp(β Q(s, a)) / Z(s)           amortised over states s

π is the best policy at a price of 1/β per nat away from μ. A run fits (or finds) μ and Q, chooses β
on held-out states, trains π, certifies it in held-out states and plays it in the environment. The
environment's returns are reported and nothing is chosen by them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from difftilt.chains.chain import Chain
from difftilt.errors import InputError, MissingPackage
from difftilt.recipes.base import Drawn, Job, Recipe, metric_row, tell
from difftilt.recipes.control.betas import at_beta, mean_ess_in
from difftilt.recipes.control.methods import control_plan, trained_methods
from difftilt.recipes.control.parts import ControlSetting, Parts, build_setting
from difftilt.recipes.pictures import Picture
from difftilt.tasks.control.acting import ChainActor, Decode, acting
from difftilt.tasks.control.data import OfflineData, load_data
from difftilt.tasks.control.environments import check_playable
from difftilt.tasks.control.evaluation import Returns, evaluate, rendered_episode
from difftilt.tasks.control.guidance import StateGuided
from difftilt.training.plan import Training

EVALUATION_SEED = 1_000
DRAWN_STEPS = 300

MethodName = Literal["rtb", "rtb_mixed", "qgpo", "diffusion_ql", "ppo_kl", "awr", "rgdm"]


@dataclass(frozen=True)
class Control(Recipe):
    """The best actions that stay inside logged data (MuJoCo), by any trained method.

    Arguments:
        data: name of a data set, or a folder in Minari's format.
        method: how the posterior is trained.
        parts: how the behaviour, the critic and β are made.
        episodes: of the evaluation.
        contexts: held-out states that samples and certificate are of.
        guidance_scale: of the guided method (qgpo); 1 aims at the posterior.
        largest_beta: of the guided method: one value for every β in (0, largest_beta], played at
            the chosen β and at the largest; None: for the chosen β alone.
        training: the plan; the method changes its objective and behaviour.

    Raises:
        InputError: an unknown method, or a number out of range.
    """

    data: str = "halfcheetah-medium"
    method: MethodName = "rtb"
    parts: Parts = field(default_factory=Parts)
    episodes: int = 10
    contexts: int = 32
    guidance_scale: float = 1.0
    largest_beta: float | None = None
    samples: int = 256
    certificate_paths: int = 4096
    training: Training = field(default_factory=control_plan)

    def __post_init__(self) -> None:
        check_named([self.method], trained_methods())
        for name in ("episodes", "contexts"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        guides = self.guidance_scale != 1.0 or self.largest_beta is not None
        if guides and self.method != "qgpo":
            raise InputError(
                f"guidance_scale and largest_beta are of the guided method, qgpo, and not of "
                f"{self.method}; leave them out"
            )

    def setting(self) -> ControlSetting:
        """What the method starts from, fitted or found in the cache.

        Raises:
            InputError: data or environment are missing, or do not fit each other.
        """
        return build_setting(playable_data(self.data), self.parts, tell)

    def job(self) -> Job:
        method, setting = trained_methods()[self.method], self.setting()
        form = method.form(setting)
        if isinstance(form, StateGuided):
            form = replace(form, scale=self.guidance_scale, largest_beta=self.largest_beta)
        torch.manual_seed(self.training.seed)
        posterior = setting.target.posterior(form)
        states = setting.held_out_states(self.contexts)
        names = tuple(f"held-out state {i}" for i in range(len(states)))
        plan = method.change(self.training)
        return Job(setting.target, posterior, plan, setting.sources, states, names)

    def evaluation(self, job: Job, drawn: Drawn) -> dict[str, Any]:
        environment = load_data(self.data).environment
        prior = job.target.prior
        chains = {"prior": prior.chain, "posterior": job.posterior.chain}
        reset = first_reset(self.training.seed, self.episodes)
        played = {
            name: evaluate(environment, self._actor(chain, prior.decoded), self.episodes, reset)
            for name, chain in chains.items()
        }
        rows = [*score_rows(played), *super().evaluation(job, drawn)["rows"]]
        rows += self._rows_of_betas(job, environment)
        note = (
            f"β = {job.target.beta:.4g}, chosen on held-out states by the critic; the returns "
            "were not read before."
        )
        return {"title": f"Control: {self.data}, {self.method}", "rows": rows, "notes": [note]}

    def _actor(self, chain: Chain, decoded: Decode) -> ChainActor:
        return acting(chain, decoded, draws=self.parts.draws)

    def _rows_of_betas(self, job: Job, environment: str) -> list[dict[str, Any]]:
        """Of a value of every β: what it is worth at the chosen one and at the largest."""
        if self.largest_beta is None:
            return []
        assert job.contexts is not None
        rows, decoded = [], job.target.prior.decoded
        reset = first_reset(self.training.seed, self.episodes)
        for beta in sorted({job.target.beta, self.largest_beta}):
            posterior = at_beta(job.posterior, beta)
            actor = self._actor(posterior.chain, decoded)
            found = evaluate(environment, actor, self.episodes, reset)
            note = f"share, mean of {len(job.contexts)} held-out states"
            ess = {"posterior": mean_ess_in(posterior, job.contexts)}
            rows.append(metric_row(f"ESS at β = {beta:.4g}", note, ess))
            note = f"± {found.standard_error:.3g}"
            rows.append(metric_row(f"return at β = {beta:.4g}", note, {"posterior": found.mean}))
        return rows

    def pictures(self, job: Job, drawn: Drawn) -> list[Picture]:
        """The first episode of the evaluation, played by the behaviour and by the posterior."""
        environment, decoded = load_data(self.data).environment, job.target.prior.decoded
        shown = {"episodes": self.episodes, "steps": DRAWN_STEPS}
        chains = {"The behaviour": job.target.prior.chain, "The posterior": job.posterior.chain}
        reset = first_reset(self.training.seed, self.episodes)
        try:
            return [
                Picture(
                    "gif",
                    rendered_episode(environment, self._actor(chain, decoded), seed=reset, **shown),
                    f"{name} in {environment}: the first {DRAWN_STEPS} steps of the first episode.",
                )
                for name, chain in chains.items()
            ]
        except MissingPackage as error:
            tell(f"no picture of the policy: {error}")
            return []


def check_named(methods: Sequence[str], known: Collection[str]) -> None:
    """Refuse a method that is not known.

    Raises:
        InputError: there is one.
    """
    for name in methods:
        if name not in known:
            raise InputError(f"unknown method {name!r}; choose one of {', '.join(known)}")


def playable_data(name: str) -> OfflineData:
    """Data by name whose environment can be played: found before anything is trained.

    Raises:
        InputError: data or environment are missing, or do not fit each other.
        CheckpointError: the data cannot be read.
        MissingPackage: what the environment runs on is not installed.
    """
    data = load_data(name)
    check_playable(data.environment, data.observation_width, data.action_width)
    return data


def first_reset(seed: int, episodes: int) -> int:
    """The reset of a seed's first episode; no two seeds have an episode's reset in common."""
    return EVALUATION_SEED + seed * episodes


def score_rows(played: dict[str, Returns]) -> list[dict[str, Any]]:
    """Rows of scores (where the environment has reference returns) and of plain returns."""
    episodes = {len(found.returns) for found in played.values()}
    errors = {name: f"{name} ± {found.standard_error:.3g}" for name, found in played.items()}
    note = f"{max(episodes)} episodes; {', '.join(errors.values())}"
    returns = metric_row("return", note, {k: v.mean for k, v in played.items()})
    try:
        scores = {name: found.score for name, found in played.items()}
    except InputError:
        return [returns]
    errors = [f"{k} ± {v.score_standard_error:.3g}" for k, v in played.items()]
    note = f"100 (return - random) / (expert - random); {', '.join(errors)}"
    return [metric_row("normalised score", note, scores), returns]
