"""A micro-step on tensors without data: which modules run in which order.

The vision encoder and the projector run on the meta device, the LLM on fake tensors (transformers'
rotary embeddings know no meta device), both at full size. Nothing is computed, so a model of 70B
takes seconds and no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    FakeTensorMode,
)  # torch documents it, but has no public name

from pargo_ds.assembly.configs import build_meta_model
from pargo_ds.assembly.freezing import apply_freezing
from pargo_ds.config import RunConfig
from pargo_ds.model import ParGoForConditionalGeneration
from pargo_ds.model.llm import final_logits, run_llm
from pargo_ds.training import recompute
from pargo_ds.training.gathering import layers_to_gather


@dataclass(frozen=True)
class Weight:
    """A parameter, whole."""

    number: int
    """In the order of the model's parameters; the same for all uses of a shared weight."""
    numel: int
    trained: bool


@dataclass(frozen=True)
class Event:
    """DeepSpeed fetches the weights of a module before it runs, or releases them after it."""

    fetch: bool
    forward: bool
    module: int
    """Number of the module, see Rehearsal.modules."""


@dataclass(frozen=True)
class Rehearsal:
    """What one micro-step does, in its order."""

    modules: tuple[tuple[Weight, ...], ...]
    """The weights that DeepSpeed gathers with each module: its own, or all of a leaf's."""
    leaves: frozenset[int]
    """The modules that are leaves."""
    depths: tuple[int, ...]
    """How deep each module lies in the model; its children follow it."""
    events: tuple[Event, ...]

    def weights(self) -> list[Weight]:
        """Every weight once, by number."""
        found = {weight.number: weight for module in self.modules for weight in module}
        return [found[number] for number in sorted(found)]


class _Mark(torch.autograd.Function):
    """The identity; its backward pass calls a function, as DeepSpeed's nodes do."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, tell: Callable[[], None]) -> torch.Tensor:
        ctx.tell = tell
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.tell()
        return grads[0], None


def _marked(values: Any, tell: Callable[[], None]) -> Any:
    """`values` with every tensor that needs a gradient marked."""
    if isinstance(values, torch.Tensor):
        return _Mark.apply(values, tell) if values.requires_grad else values
    if isinstance(values, dict):
        for key in list(values):
            values[key] = _marked(values[key], tell)
        return values
    if isinstance(values, (tuple, list)):
        return type(values)(_marked(value, tell) for value in values)
    return values


class Recorder:
    """Writes down what DeepSpeed's hooks would do around each module of a model."""

    def __init__(self, model: nn.Module, leaves: list[nn.Module]) -> None:
        """`model` with its freezing; `leaves`: modules whose weights are gathered together."""
        self.numbers = {id(p): number for number, p in enumerate(model.parameters())}
        whole = {id(leaf) for leaf in leaves}
        self.modules: list[tuple[Weight, ...]] = []
        self.leaves: set[int] = set()
        self.depths: list[int] = []
        self.events: list[Event] = []

        def visit(module: nn.Module, depth: int) -> None:
            leaf = id(module) in whole
            if leaf:
                self.leaves.add(len(self.modules))
            self._watch(module, len(self.modules))
            self.modules.append(self.weights_of(module, below=leaf))
            self.depths.append(depth)
            for child in () if leaf else module.children():
                visit(child, depth + 1)

        visit(model, 0)

    def weights_of(self, module: nn.Module, below: bool = False) -> tuple[Weight, ...]:
        """A module's own weights, with those `below` it if wanted."""
        own = module.parameters(recurse=below)
        return tuple(Weight(self.numbers[id(p)], p.numel(), p.requires_grad) for p in own)

    def gathered(self) -> tuple[tuple[Weight, ...], ...]:
        """The weights of each module; those of a module that was never called itself (an encoder
        of which a method is called) belong to the one around it, which DeepSpeed finds out, too.
        """
        called = {event.module for event in self.events}
        modules = [list(module) for module in self.modules]
        around: list[int] = []
        """Numbers of the modules above, outermost first."""
        for number, depth in enumerate(self.depths):
            del around[depth:]
            above = next((one for one in reversed(around) if one in called), None)
            if number not in called and above is not None:
                modules[above] += modules[number]
                modules[number] = []
            around.append(number)
        return tuple(tuple(module) for module in modules)

    def _watch(self, module: nn.Module, number: int) -> None:
        waiting = [0]
        """Inputs of this call whose gradient is still to come."""

        def after_backward() -> None:
            waiting[0] -= 1
            if waiting[0] == 0:
                self.events.append(Event(False, False, number))

        def before_backward() -> None:
            self.events.append(Event(True, False, number))

        def count(inputs: Any) -> None:
            waiting[0] += sum(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs)

        def before(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
            self.events.append(Event(True, True, number))
            waiting[0] = 0
            count(inputs)
            return _marked(inputs, after_backward)

        def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            self.events.append(Event(False, True, number))
            return _marked(output, before_backward)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)


def rehearse(run: RunConfig, checkpointed: int = 0) -> Rehearsal:
    """The order of a micro-step of `run` with the first `checkpointed` layers of the LLM computed
    again; with all of them the projector's are, too. A micro-step without images has the same order.
    """
    model = build_meta_model(run)
    apply_freezing(model, run.train)
    model.train()
    model.llm.config.use_cache = (
        False  # transformers would say that it does not go with checkpoints
    )
    count = len(recompute.llm_layers(model))
    again = recompute.Recompute(checkpointed, count, projector=checkpointed == count)
    recompute.apply(model, again)
    whole_layers = run.train.zero3_gather == "layers"
    recorder = Recorder(model, layers_to_gather(model) if whole_layers else [])
    # final_logits reads the type of the head's weight outside of the head, for which DeepSpeed
    # gathers that weight with the whole model, from its start on.
    recorder.modules[0] += recorder.weights_of(model.get_output_embeddings())
    recorder.events.append(Event(True, True, 0))
    with llm_on_fake_tensors(model) as fake:
        _micro_step(model, recorder, fake)
    return Rehearsal(
        recorder.gathered(),
        frozenset(recorder.leaves),
        tuple(recorder.depths),
        tuple(recorder.events),
    )


@contextmanager
def llm_on_fake_tensors(model: ParGoForConditionalGeneration) -> Iterator[FakeTensorMode]:
    """In here the LLM of a model on the meta device has fake tensors, which claim to be on a CPU."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        model.llm.to_empty(device="cpu")
    yield mode


def _micro_step(
    model: ParGoForConditionalGeneration, recorder: Recorder, fake: FakeTensorMode
) -> None:
    """Forward and backward in the order of the model's own: embeddings, vision, projector, LLM."""
    vision = model.config.vision_config
    tokens = 8
    with fake:
        words = model.get_input_embeddings()(torch.zeros(1, tokens, dtype=torch.long))
    pixels = torch.zeros(1, 3, vision.image_size, vision.image_size, device="meta")
    visual = model.projector(model.vision(pixels))
    with fake:
        embeds = torch.empty(1, tokens, model.config.text_config.hidden_size)
        embeds.requires_grad_(visual.requires_grad or words.requires_grad)
        hidden = run_llm(model.llm, embeds.clone()).last_hidden_state
        loss = final_logits(model.llm, hidden[0]).sum()
    recorder.events.append(Event(False, True, 0))
    recorder.events.append(Event(True, False, 0))
    with fake:
        loss.backward()
    if visual.requires_grad:
        visual.sum().backward()
    if words.requires_grad:
        with fake:
            words.sum().backward()
