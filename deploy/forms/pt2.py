"""This file writes a network as a torch.export file, and runs such a file."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from deploy.forms.quiet import silence

FACTS = "facts.json"  # in the archive, under extra/


def write_pt2(form: nn.Module, path: Path, example: Tensor, about: dict[str, str]) -> None:
    """Write a folded network that takes any number of images like those of `example`, and `about`, JSON by name."""
    with silence():
        program = torch.export.export(form, (example,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
        for module in program.graph_module.modules():
            if isinstance(module, torch.fx.GraphModule):
                for node in module.graph.nodes:
                    node.meta.pop("stack_trace", None)  # paths and source lines of the machine that exports
        extra = {FACTS: json.dumps({name: json.loads(value) for name, value in about.items()}, ensure_ascii=False)}
        torch.export.save(program, str(path), extra_files=extra)


def run_pt2(path: Path, images: Tensor) -> list[Tensor]:
    """Return the outputs that PyTorch gives for the images by the file."""
    with silence():
        output = torch.export.load(str(path)).module()(images)
    return [output] if isinstance(output, Tensor) else list(output)
