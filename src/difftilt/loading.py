"""One door for priors of every kind: ``load`` asks what a source is and hands it to its reader."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difftilt.chains.chain import Chain
from difftilt.denoisers import NetworkDenoiser
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.errors import InputError
from difftilt.posteriors import Prior
from difftilt.schedules import Schedule

STEPS = 50


def load(
    source: Any,
    steps: int | None = None,
    *,
    eta: float | None = None,
    schedule: Schedule | None = None,
    event_shape: Sequence[int] | None = None,
    **options: Any,
) -> Any:
    """A prior from a diffusers pipeline, a language model, a policy, or a network with a schedule.

    Arguments:
        source: a folder or hub id of a diffusers pipeline (unconditional, or text-to-image), or a
            live one; an ``nn.Module`` called as ``network(x, time (B,))``, together with
            ``schedule`` and ``event_shape``; a folder of a masked language model (for a hub id or a
            live one ``TextPrior(load_text_model(...))``); or a folder of a ``DiffusionPolicy`` or
            of a ``PointCloudModel``.
        steps: N, default 50; language models have one for each token.
        eta: stochasticity of DDIM-like samplers, in [0, 1], default 1.
        schedule: noise schedule of an ``nn.Module``; it is told the schedule's t in [0, 1].
        event_shape: shape of one sample of an ``nn.Module``.
        **options: of an ``nn.Module``: ``prediction_type``, what it predicts (``denoisers``;
            default "epsilon"); of a text-to-image pipeline: fields of ``PictureOptions``
            (``guidance_scale``, ``negative_prompt``, ``true_cfg_scale``, ``height``, ``width``,
            ``network_batch``, ``decode_batch``, ``checkpointing``); of a language model:
            ``tokenizer`` (live, or a folder or hub id of one), ``order`` and ``temperature`` of a
            ``TextPrior``, and ``mask_id``, ``pad_id``, ``banned``, ``family``,
            ``trust_remote_code`` and ``dtype`` (``load_text_model``).

    Returns:
        a ``Prior``, a ``TextPrior``, whose verb is ``infill``, or a ``TextToImagePrior``, whose
        verb is ``draw``.

    Raises:
        InputError: the source is of no known kind, something of it is missing, or an option is none
            of its kind.
    """
    others = {"steps": steps, "eta": eta, "schedule": schedule, "event_shape": event_shape}
    given = {name: value for name, value in others.items() if value is not None} | options
    mark = mark_of(source)
    if mark is not None:
        return READERS[mark](source, given)
    if isinstance(source, nn.Module) and not hasattr(source, "scheduler"):
        return _network(source, given)
    return _pipeline(source, given)


def mark_of(source: Any) -> str | None:
    """The file by which a folder's kind is known; None for what is no folder of a known kind."""
    if not isinstance(source, str | Path):
        return None
    folder = Path(source).expanduser()
    return next((mark for mark in READERS if (folder / mark).is_file()), None)


def _taken(source: Any, kind: str, given: dict[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """What was given, if the kind of the source takes all of it."""
    for name in given:
        if name not in known:
            steps = "" if "steps" in known else ", and the steps are those of the order"
            raise InputError(
                f"{_name(source)} is {kind}, for which load has no option {name!r}; options are "
                f"{', '.join(known)}{steps}"
            )
    return given


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else type(source).__name__


def _policy(source: str | Path, given: dict[str, Any]) -> Prior:
    from difftilt.adapters.policies import load_policy

    taken = _taken(source, "a policy", given, ["steps"])
    policy = load_policy(source)
    return Prior(policy.chain(taken.get("steps", STEPS)), policy.decode, str(source))


def _point_clouds(source: str | Path, given: dict[str, Any]) -> Prior:
    from difftilt.adapters.point_clouds import load_point_clouds

    taken = _taken(source, "a model of point clouds", given, ["steps"])
    chain = load_point_clouds(source).chain(taken.get("steps", STEPS))
    return Prior(chain, source=str(source))


def _language_model(source: str | Path, given: dict[str, Any]) -> Any:
    from difftilt.adapters.text.base import load_text_model
    from difftilt.adapters.text.families import TextOptions
    from difftilt.text_priors import TextPrior

    known = ["tokenizer", "order", "temperature", *(f.name for f in fields(TextOptions))]
    taken = dict(_taken(source, "a language model", given, known))
    prior = {name: taken.pop(name) for name in ("order", "temperature") if name in taken}
    return TextPrior(load_text_model(source, **taken), **prior)


def _network(source: nn.Module, given: dict[str, Any]) -> Prior:
    known = ["steps", "schedule", "event_shape", "prediction_type"]
    taken = _taken(source, "a bare network", given, known)
    schedule, event_shape = taken.get("schedule"), taken.get("event_shape")
    if schedule is None or event_shape is None:
        raise InputError(
            "a bare network needs schedule=... (e.g. difftilt.VariancePreserving()) and "
            "event_shape=... (the shape of one sample)"
        )
    prediction_type = taken.get("prediction_type", "epsilon")
    denoiser = NetworkDenoiser(source.eval().requires_grad_(False), prediction_type)
    diffusion = GaussianDiffusion(schedule.levels(taken.get("steps", STEPS)))
    like = next((p.detach().new_zeros(()) for p in source.parameters()), torch.zeros(()))
    return Prior(Chain(denoiser, diffusion, tuple(event_shape), like=like))


def _pipeline(source: Any, given: dict[str, Any]) -> Any:
    from difftilt.adapters.diffusers import chain_from_pipeline, open_pipeline
    from difftilt.adapters.text_to_image import PictureOptions, family_of, text_to_image_model

    pipeline, known = open_pipeline(source), ["steps", "eta"]
    if family_of(pipeline) is None:
        taken = _taken(source, "an unconditional pipeline", given, known)
        record = chain_from_pipeline(pipeline, **{"steps": STEPS, **taken})
        return Prior(record.chain, source=_name(source), pipeline=record)
    from difftilt.text_to_image import TextToImagePrior

    known += [f.name for f in fields(PictureOptions)]
    taken = _taken(source, "a text-to-image pipeline", given, known)
    return TextToImagePrior(
        text_to_image_model(pipeline, **{"steps": STEPS, **taken}), _name(source)
    )


READERS = {
    "policy.json": _policy,
    "point_cloud.json": _point_clouds,
    "model_index.json": _pipeline,
    "config.json": _language_model,
}
