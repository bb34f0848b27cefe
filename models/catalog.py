"""Any classifier of timm or torchvision by its name there, with the head and the stem fitted to the data set."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import nn

from models.names import nearest

# Where a torchvision family fixes its input size at construction, the argument that sets it.
SIZE_ARGUMENTS = {"vit_": "image_size", "maxvit_": "input_size"}
# torchvision families with an auxiliary classifier: in training they return several outputs, which no task here reads.
AUXILIARY = ("googlenet", "inception_v3")
Rate = Annotated[float, "0 <= x < 1"] | None


def timm_model(
    *,
    name: str,
    num_classes: int,
    in_shape: tuple[int, int, int],
    pretrained: bool = False,
    drop_rate: Rate = None,
    drop_path_rate: Rate = None,
) -> nn.Module:
    """timm's model `name` ("resnet18", or with a weights tag "resnet18.tv_in1k").

    Images (N, C, H, W) -> logits (N, num_classes). timm adapts the stem to C channels; models that fix their input size
    get H and W. `pretrained` downloads the tag's weights (the default tag's without one), with a fresh classifier where
    num_classes differs from theirs. `drop_rate` is the classifier's dropout, `drop_path_rate` that of residual
    branches; None is the model's default.

    ValueError for an unknown name or tag (with the nearest), a rate outside [0, 1) or not taken by the model, an
    `in_shape` it cannot process, or weights that cannot be had.
    """
    import timm

    label = f"timm's {name!r}"
    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        raise ValueError(f"timm {timm.__version__} has no model {architecture!r} {nearest(architecture, known)}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(f"timm's {architecture!r} has no weights tag {tag!r} {nearest(tag, tags)}")
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    options: dict[str, Any] = {option: rate for option, rate in rates.items() if rate is not None}
    for option, rate in options.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{option} is a probability in [0, 1), not {rate}")
    registered = timm.get_pretrained_cfg(name)
    if registered is not None and registered.fixed_input_size:
        options["img_size"] = tuple(in_shape[1:])
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_shape[0], **options)
    except TypeError as error:  # an argument this architecture's constructor does not have
        raise ValueError(f"{label} cannot be built with {options}: {_reason(error)}") from error
    except OSError as error:
        raise ValueError(f"the weights of {label} cannot be had: {_reason(error)}") from error
    except (AssertionError, RuntimeError) as error:  # a size that does not divide into patches; no weights published
        raise ValueError(f"{label} cannot be built for images of {_size(in_shape)}: {_reason(error)}") from error
    _require_runs(model, label, in_shape, num_classes)
    return model


def torchvision_model(
    *, name: str, num_classes: int, in_shape: tuple[int, int, int], weights: str | None = None
) -> nn.Module:
    """torchvision's classifier `name` ("resnet18"): images (N, 3, H, W) -> logits (N, num_classes).

    `weights`: None, or one of the model's published sets ("IMAGENET1K_V1", "DEFAULT"), which is downloaded; a
    classifier of another size keeps its fresh initialisation. Auxiliary classifiers (googlenet, inception_v3) are left
    out. Vision transformers get the image size of `in_shape`.

    ValueError for an unknown name or weights (with the nearest), an input without 3 channels, an `in_shape` the model
    cannot process, or weights that do not fit or cannot be had.
    """
    import torchvision
    from torchvision import models

    label = f"torchvision's {name!r}"
    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(f"torchvision {torchvision.__version__} has no classifier {name!r} {nearest(name, known)}")
    if in_shape[0] != 3:
        raise ValueError(
            f"{label} takes 3-channel images, but in_shape is {tuple(in_shape)}; "
            "model=timm adapts its models' stems to other channels"
        )
    published = {} if weights is None else models.get_model_weights(name).__members__
    if weights is not None and weights not in published:
        raise ValueError(f"{label} has no weights {weights!r} {nearest(weights, published)}")
    options: dict[str, Any] = {}
    for prefix, argument in SIZE_ARGUMENTS.items():
        if name.startswith(prefix):
            height, width = in_shape[1:]
            if height != width:
                raise ValueError(f"{label} takes square images, not {_size(in_shape)}")
            options[argument] = height if argument == "image_size" else (height, width)
    if name in AUXILIARY:
        # The published weights of these two expect inputs that the model itself renormalises.
        options |= {"aux_logits": False, "init_weights": True, "transform_input": weights is not None}
    try:
        model = models.get_model(name, weights=None, num_classes=num_classes, **options)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{label} cannot be built for images of {_size(in_shape)}: {_reason(error)}") from error
    if weights is not None:
        try:
            state = published[weights].get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:  # no network; a download of another hash
            raise ValueError(f"the weights {weights} of {label} cannot be had: {_reason(error)}") from error
        _load_where_shapes_agree(model, state)
    _require_runs(model, label, in_shape, num_classes)
    return model


def _load_where_shapes_agree(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Copy the tensors of `state` that the model has in the same shape; the last layer's alone may differ.

    ValueError when another tensor differs: that is a network of another input size, not one with another head.
    """
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    head = list(own)[-1].rpartition(".")[0]
    strange = [key for key in own if key not in fitting and key.rpartition(".")[0] != head]
    if strange:
        raise ValueError(f"the published weights do not fit {strange[0]!r}; build the model for their image size")
    model.load_state_dict(fitting, strict=False)


def _require_runs(model: nn.Module, label: str, in_shape: tuple[int, int, int], num_classes: int) -> None:
    """One image of zeros through the model in inference mode; ValueError where it cannot be processed."""
    like = next(model.parameters())
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, *in_shape, dtype=like.dtype, device=like.device))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        raise ValueError(f"{label} cannot process images of {_size(in_shape)}: {_reason(error)}") from error
    finally:
        model.train(training)
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (1, num_classes):
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"{label} returns {shape} instead of logits of shape (1, {num_classes})")


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".!")


def _size(in_shape: tuple[int, int, int]) -> str:
    channels, height, width = in_shape
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"
