"""Pictures that obey the prompt: the shipped text-to-image prior on prompts that it never saw.

The prior has seen every colour and every thing, but these pairs of them never together; the reward
is the log-probability of the prompt that a small image-text model gives to the picture, used as a
black box. One posterior, low-rank adapters on the prior's network, is trained for all prompts;
baselines get the same adapters, prompts and number of network calls. A classifier that no training
has seen judges. The truth is rejection: the prior's pictures of a prompt, kept with probability
r^β.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from difftilt.diagnostics.conditional import ConditionalCertificate
from difftilt.recipes.base import Drawn, Job, Recipe, metric_row, tell
from difftilt.recipes.form import FormChoice
from difftilt.recipes.pictures import MOST_SHOWN, Picture, as_bytes
from difftilt.recipes.tables.makers import Setting
from difftilt.recipes.text_to_image.methods import (
    NETWORK_CALLS,
    picture_plan,
    trained_picture_methods,
)
from difftilt.recipes.text_to_image.sheets import pareto_plot, prompt_sheet
from difftilt.recipes.text_to_image.task import (
    BETA,
    GUIDANCE,
    STEPS,
    Judging,
    default_prompts,
    in_turn,
    picture_task,
)
from difftilt.sampling.draws import Samples
from difftilt.tasks.picture_figures import PromptPictures, picture_figures
from difftilt.training.plan import Training

Baseline = Literal[
    "rtb_guidance",
    "rtb_slope",
    "ddpo",
    "ddpo_kl",
    "dpok",
    "flow_grpo",
    "align_prop",
    "draft",
    "adjoint_matching",
]
SHOWN = 4
FIGURES = {
    "log_r": ("mean log r", "nats, of the reward's network"),
    "right": ("share right", "colour and thing, by the held-out judge"),
    "colour": ("share of the right colour", "by the held-out judge"),
    "thing": ("share of the right thing", "by the held-out judge"),
    "diversity": ("diversity", "mean pairwise distance of the judge's features within a prompt"),
    "energy": ("energy distance to the truth", "in the judge's features, within a prompt"),
}


@dataclass(frozen=True)
class HeldOutPrompts(Recipe):
    """Pictures of prompts such as "a green rabbit" that the shipped prior never saw.

    Arguments:
        prompts: each names a colour and a thing; default eight of the pairs that were held out.
        baselines: trained beside it with the same network calls; none makes the run shorter.
            "rtb_guidance" learns no adapters, but how far to go along the pipeline's guidance, and
            "rtb_slope" also how far along the reward's gradient.
        steps: N of the chain (DDIM at eta = 1).
        guidance_scale: of classifier-free guidance, which is part of the prior; 1 for none.
        beta: β.
        form: what carries the posterior.
        training: the plan.
    """

    prompts: tuple[str, ...] = ()
    baselines: tuple[Baseline, ...] = ("rtb_slope", "ddpo", "dpok")
    steps: int = STEPS
    guidance_scale: float = GUIDANCE
    beta: float = BETA
    samples: int = 256
    certificate_paths: int = 1024
    form: FormChoice = field(default_factory=lambda: FormChoice("lora", rank=16, targets="all"))
    training: Training = field(default_factory=lambda: picture_plan(NETWORK_CALLS))

    @cached_property
    def judging(self) -> Judging:
        """The task and its judge."""
        prompts = self.prompts or default_prompts()
        return Judging(picture_task(prompts, self.steps, self.guidance_scale, self.beta))

    @cached_property
    def _kept(self) -> dict[str, Any]:
        """What the table and the pictures share."""
        return {}

    def job(self) -> Job:
        task = self.judging.task
        target, prompts = task.target, task.prompts
        posterior = target.posterior(self.form.build())
        rows = self.judging.rows
        return Job(target, posterior, self.training, task.sources, rows, prompts)

    def evaluation(self, job: Job, drawn: Drawn) -> dict[str, Any]:
        sets, truth = self._judged(job, drawn), self._truth(job, drawn)
        found = {name: picture_figures(one, truth) for name, one in sets.items()}
        found["truth"] = picture_figures(truth)
        rows = [
            {**metric_row(title, note, {}), **{name: f.get(key) for name, f in found.items()}}
            for key, (title, note) in FIGURES.items()
        ]
        count = sum(len(one.log_r) for one in truth)
        assert isinstance(drawn.certificate, ConditionalCertificate)
        notes = [
            f"Prompts, none of which the prior has seen: {', '.join(job.names)}.",
            f"The truth is {count} other pictures of the prior, accepted with probability r^β.",
            "Baselines have the posterior's adapters and its budget, nothing else was fitted; but "
            "rtb_guidance learns, instead of adapters, a strength of guidance for each step, and "
            "rtb_slope one of the reward's gradient too.",
            f"Certificate on average: {drawn.certificate.verdict}.",
        ]
        return {"title": "Prompts that the prior never saw", "rows": rows, "notes": notes}

    def pictured(self, job: Job, samples: Samples) -> Tensor | None:
        return as_bytes(job.target.prior.decoded(samples.x_0[:MOST_SHOWN]))

    def pictures(self, job: Job, drawn: Drawn) -> list[Picture]:
        """A sheet of pictures of each sampler, and reward against diversity."""
        drawings = {"prior": drawn.prior, "posterior": drawn.posterior, **self._baselines(job)}
        sheets = {
            name: [self.judging.pictures(_first(s)) for s in in_turn(samples, len(job.names))]
            for name, samples in drawings.items()
        }
        sets, truth = self._judged(job, drawn), self._truth(job, drawn)
        figures = {name: picture_figures(one) for name, one in sets.items() if name != "corrected"}
        points = {name: (f["diversity"], f["log_r"]) for name, f in figures.items()}
        full = picture_figures(truth)
        points["truth"] = (full["diversity"], full["log_r"])
        return [prompt_sheet(sheets, job.names), pareto_plot(points)]

    def _judged(self, job: Job, drawn: Drawn) -> dict[str, list[PromptPictures]]:
        """Each sampler's pictures, as the judge sees them; prompts apart."""
        if "judged" not in self._kept:
            sets = {"prior": drawn.prior, "posterior": drawn.posterior, **self._baselines(job)}
            judged = {
                name: self.judging.judged(in_turn(s, len(job.names))) for name, s in sets.items()
            }
            # The truth is drawn from other prior draws than those that are compared with it.
            shown = [len(one.log_r) for one in judged["posterior"]]
            split = [one.split(n) for one, n in zip(judged["prior"], shown, strict=True)]
            judged["prior"], self._kept["apart"] = map(list, zip(*split, strict=True))
            self._kept["judged"] = judged
        return self._kept["judged"]

    def _truth(self, job: Job, drawn: Drawn) -> list[PromptPictures]:
        self._judged(job, drawn)
        return self.judging.truth(self._kept["apart"], self.training.seed)

    def _baselines(self, job: Job) -> dict[str, Samples]:
        """Samples of each baseline, trained by the posterior's plan as its method changes it."""
        if "baselines" not in self._kept:
            made = {name: self._baseline(job, name) for name in self.baselines}
            self._kept["baselines"] = made
        return self._kept["baselines"]

    def _baseline(self, job: Job, name: str) -> Samples:
        plan = self.training
        tell(f"training {name} beside it")
        setting = Setting(job.target, self.form.build(), plan, 0, 0, sources=job.sources)
        chain = trained_picture_methods()[name](setting)
        return job.draw(replace(job.posterior, chain=chain), self.samples, plan.seed + 7)


def _first(samples: Samples) -> Samples:
    return Samples(samples.x_0[:SHOWN])
