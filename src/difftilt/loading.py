"""One door for priors of every kind: ``load`` asks what a source is and hands it to its reader."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difftilt.chains import Chain
from difftilt.denoisers import NetworkDenoiser
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.errors import InputError
from difftilt.posteriors import Prior
from difftilt.schedules import Schedule


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
    if _is_text_folder(source):
        others = {"steps": steps, "eta": eta, "schedule": schedule, "event_shape": event_shape}
        given = [name for name, value in others.items() if value is not None]
        return _language_model(source, given, options)
    steps, eta = 50 if steps is None else steps, 1.0 if eta is None else eta
    if isinstance(source, str | Path) and (Path(source) / "policy.json").is_file():
        from difftilt.adapters.policies import load_policy

        policy = load_policy(source)
        return Prior(policy.chain(steps), policy.decode, str(source))
    if isinstance(source, str | Path) and (Path(source) / "point_cloud.json").is_file():
        from difftilt.adapters.point_clouds import load_point_clouds

        return Prior(load_point_clouds(source).chain(steps), source=str(source))
    if isinstance(source, nn.Module) and not hasattr(source, "scheduler"):
        return _network(source, steps, schedule, event_shape, options)
    return _pipeline(source, steps, eta, options)


def _is_text_folder(source: Any) -> bool:
    """Whether it is a folder of one model, and not of a diffusers pipeline."""
    if not isinstance(source, str | Path):
        return False
    folder = Path(source)
    return (folder / "config.json").is_file() and not (folder / "model_index.json").exists()


def _language_model(source: str | Path, given: list[str], options: dict[str, Any]) -> Any:
    """A ``TextPrior``; ``given`` are the arguments that are for other sources."""
    from difftilt.adapters.text.base import load_text_model
    from difftilt.adapters.text.families import TextOptions
    from difftilt.text_priors import TextPrior

    known = ["tokenizer", "order", "temperature", *(f.name for f in fields(TextOptions))]
    unknown = [*given, *sorted(set(options) - set(known))]
    if unknown:
        raise InputError(
            f"{source} is a language model, for which load has no option {unknown[0]!r}; options "
            f"are {', '.join(known)}, and the steps are those of the order"
        )
    prior = {name: options.pop(name) for name in ("order", "temperature") if name in options}
    return TextPrior(load_text_model(source, **options), **prior)


def _network(
    source: nn.Module,
    steps: int,
    schedule: Schedule | None,
    event_shape: Sequence[int] | None,
    options: dict[str, Any],
) -> Prior:
    if schedule is None or event_shape is None:
        raise InputError(
            "a bare network needs schedule=... (e.g. difftilt.VariancePreserving()) and "
            "event_shape=... (the shape of one sample)"
        )
    prediction_type = options.pop("prediction_type", "epsilon")
    _refuse(options)
    denoiser = NetworkDenoiser(source.eval().requires_grad_(False), prediction_type)
    diffusion = GaussianDiffusion(schedule.levels(steps))
    like = next((p.detach().new_zeros(()) for p in source.parameters()), torch.zeros(()))
    return Prior(Chain(denoiser, diffusion, tuple(event_shape), like=like))


def _pipeline(source: Any, steps: int, eta: float, options: dict[str, Any]) -> Any:
    from difftilt.adapters.diffusers import chain_from_pipeline, open_pipeline
    from difftilt.adapters.text_to_image import family_of, text_to_image_model

    pipeline = open_pipeline(source)
    name = str(source) if isinstance(source, str | Path) else type(source).__name__
    if family_of(pipeline) is not None:
        from difftilt.text_to_image import TextToImagePrior

        return TextToImagePrior(text_to_image_model(pipeline, steps, eta, **options), name)
    _refuse(options)
    record = chain_from_pipeline(pipeline, steps, eta=eta)
    return Prior(record.chain, source=name, pipeline=record)


def _refuse(options: dict[str, Any]) -> None:
    if options:
        raise InputError(
            f"load has no option {sorted(options)[0]!r} for this source; prediction_type is one of "
            "bare networks, and guidance_scale and the like are those of text-to-image pipelines"
        )
