"""Sharding of the frozen backbone over the learner processes, for models that one device cannot hold.

It uses FSDP2 (``torch.distributed.fsdp.fully_shard``; Zhao et al. 2023, arXiv 2304.11277).

Between passes each process holds its part of every weight. A pass gathers one unit at a time (a decoder or vision
layer, the embeddings, the vocabulary head), uses it, and frees it again; so does the backward pass.
What is trained, adapters and value head, is small: every process holds all of it, and its gradients are summed as
without sharding.

Gathering is a collective operation: every process must make as many passes of each kind as every other.
"""

from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from fgaif_ray.vlm.group import LearnerGroup
from fgaif_ray.vlm.passes import DecoderPass, ImagePass, VocabularyScores


def shard_backbone(
    images: ImagePass,
    decoder: DecoderPass,
    vocabulary: VocabularyScores,
    trained: set[nn.Parameter],
    group: LearnerGroup,
) -> None:
    """Keep this process's part of the backbone on the group's device, and move trained parameters there.

    The backbone is moved a unit at a time, so that the device never holds all of it. Afterwards its weights can be
    read only in calls of the three parts.

    Args:
        images: of a backbone with its adapters in place.
        decoder: of the same one.
        vocabulary: of the same one.
        trained: parameters that every process keeps whole.
        group: of more than one process, all of which call this.
    """
    model = decoder.backbone.model
    options: dict[str, Any] = {
        "mesh": init_device_mesh(group.device.type, (group.size,)),
        "reshard_after_forward": True,  # also of the outermost modules, which FSDP by itself would keep together
        "ignored_params": trained | set(model.base_model.parameters(recurse=False)),  # such as an end of image rows
    }
    for layer in [*images.modules(), *decoder.modules()]:
        if isinstance(layer, GradientCheckpointingLayer):
            fully_shard(layer, **options)
    embeddings = fully_shard(model.get_input_embeddings(), **options)
    embeddings.set_unshard_in_backward(False)  # nothing before them is trained
    # Not the towers themselves: FSDP changes a module's class, by which transformers knows what a tower can record.
    for part in (images, decoder, vocabulary):
        fully_shard(part, **options)
    with torch.no_grad():
        for tensor in chain(model.parameters(), model.buffers()):
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(group.device)
