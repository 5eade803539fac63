"""Find out by computation whether an LLM keeps the samples of a packed row apart.

A tiny copy of the LLM's own configuration with random weights computes a few samples packed, and
each of them alone through transformers' own forward with its plainest attention. Logits and
gradients must agree. This finds layers that mix neighbours (state spaces, convolutions, linear
attention), masks and score caps that a fast attention drops, position frequencies that depend on
the longest sample of a batch, logits that are changed after the head, and inputs that come by
other ways than the word embeddings.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from .llm import ROADS, final_logits, run_packed_llm, switch_off_noise
from .packed_attention import LLMAttention, unlogged, use_packed_attention
from .tiny_llm import LENGTHS, VOCABULARY, Limits, exceeded_limits, tiny_config

DRAWS = (VOCABULARY, 6)
"""Weights and samples are drawn once for each of these; a sample's words have smaller ids than
this, and at least 3. The second makes words repeat, as they do in any text: a layer that keeps its
best keys then meets ties, and what it makes of them depends on the padding behind a sample (Doge).
"""

LOGIT_TOLERANCE = {torch.float64: 2e-5, torch.float32: 1e-4}
"""Per unit of the largest logit. Measured over 130 families in float64: at most 1.5e-6, from parts
that transformers computes in float32; where all is float32 at most 1.6e-5. The smallest leak found
was 3e-3.
"""
GRADIENT_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
"""Per unit of the largest gradient of a tensor.

Measured: at most 4e-6, and 2.5e-4 where all is float32.
"""


class PackingError(ValueError):
    """An LLM cannot train exactly on packed samples."""


@dataclass(frozen=True)
class Packing:
    """The road of packed rows that is exact for an LLM, and why a faster one is not taken.

    `noise`: what remains different in training mode after switch_off_noise; None for nothing.
    `bf16`: the error with all parameters in bfloat16, from families that need some in float32; None
    for none.
    """

    road: str
    reason: str
    noise: str | None
    bf16: str | None = None


def prove_packing(
    config: PretrainedConfig,
    longest: int,
    row: int | None = None,
    *,
    implementation: str | None = None,
) -> Packing:
    """Return the first exact road of ROADS for an LLM of this configuration.

    It is computed once for a configuration in a process and takes about a second on a CPU.

    Args:
        config: the LLM's own configuration.
        longest: tokens of the longest sample that a pack may hold.
        row: tokens of the whole pack; as many as the longest sample where it is not said.
        implementation: attention implementation of the LLM; only "eager" makes a difference.

    Raises:
        PackingError: no road is exact, or the copy cannot be built; one sentence says why.
    """
    limits = exceeded_limits(config, longest, max(longest, row or 0))
    eager = implementation == "eager"
    body = json.dumps(config.to_dict(), sort_keys=True, default=str)
    key = (type(config), body, limits, eager)
    if key not in _PROVEN:
        _PROVEN[key] = _prove(config, limits, eager)
    found = _PROVEN[key]
    if isinstance(found, Packing):
        return found
    raise PackingError(_refusal(config, max(longest, row or 0), limits, found, implementation))


_PROVEN: dict[tuple, "Packing | tuple[str, ...]"] = {}
"""Cached results of this process."""


def _prove(config: PretrainedConfig, limits: Limits, eager: bool) -> Packing | tuple[str, ...]:
    """The road, or what is wrong with each of them."""
    with _undisturbed():
        try:
            truths = [_Truth(config, limits, eager, words) for words in DRAWS]
        except Exception as error:
            return (f"a small copy of it does not run on such samples: {_first_line(error)}",)
        faults: list[str] = []
        for road in ROADS:
            fault = next(filter(None, (truth.fault(road) for truth in truths)), None)
            if fault is None:
                reason = "samples stay apart in one row"
                if faults:
                    reason = f"packed: {faults[0]}"
                return Packing(road, reason, truths[0].noise(road), truths[0].bf16(road))
            faults.append(fault)
    return tuple(faults)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Within this context the probe has its own random numbers, device and gradient mode."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("cpu"),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        unlogged(),
    ):
        torch.manual_seed(0)
        yield


class _Truth:
    """The samples computed alone by transformers itself; their words have ids below `words`."""

    def __init__(self, config: PretrainedConfig, limits: Limits, eager: bool, words: int) -> None:
        self.tiny = tiny_config(config, limits)
        self.samples = [torch.randint(3, words, (1, length)) for length in LENGTHS]
        self.seen = torch.randn(sum(LENGTHS), VOCABULARY, dtype=torch.float64)
        self.eager = eager
        built = _with_drawn_weights(AutoModelForCausalLM.from_config(self.tiny)).eval()
        try:
            self._compute(built.double())
        except RuntimeError:  # some families have parts that stay in float32
            self._compute(built.float())

    def _compute(self, llm: PreTrainedModel) -> None:
        self.llm = llm
        reference = copy.deepcopy(llm)
        if hasattr(reference, "set_attn_implementation"):
            try:
                reference.set_attn_implementation("eager")
            except ValueError:  # the family has one implementation only
                reference = copy.deepcopy(llm)
        outputs = [reference(input_ids=ids, use_cache=False).logits[0] for ids in self.samples]
        self.logits = torch.cat(outputs)
        self.gradients = self._gradients(self.logits, reference)
        if not torch.isfinite(self.logits).all():
            raise FloatingPointError("its logits are no numbers")

    def _gradients(
        self, logits: torch.Tensor, llm: PreTrainedModel
    ) -> dict[str, torch.Tensor | None]:
        wanted = {name: p for name, p in llm.named_parameters() if p.requires_grad}
        total = (logits * self.seen).sum()
        found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        return dict(zip(wanted, found, strict=True))

    def _copy(self) -> PreTrainedModel:
        return self._as_trained(copy.deepcopy(self.llm))

    def _as_trained(self, llm: PreTrainedModel) -> PreTrainedModel:
        if self.eager:
            llm.set_attn_implementation("eager")
        use_packed_attention(llm)
        return llm

    def _logits_fault(self, logits: torch.Tensor) -> str | None:
        scale = max(1.0, float(self.logits.detach().abs().max()))
        off = float((logits - self.logits).detach().abs().max())
        if off < LOGIT_TOLERANCE[self.llm.dtype] * scale:
            return None
        return f"logits differ from those of each sample alone by {off:.1g}"

    def noise(self, road: str) -> str | None:
        """What differs in training mode, with dropout switched off."""
        llm = self._copy().train()
        switch_off_noise(llm)
        try:
            return self._logits_fault(_packed_logits(llm, self.samples, road))
        except Exception as error:
            return _first_line(error)

    def bf16(self, road: str) -> str | None:
        """The error of a road with every parameter in bfloat16, None when it runs."""
        try:
            llm = AutoModelForCausalLM.from_config(self.tiny, dtype=torch.bfloat16)
        except NotImplementedError:
            # RWKV's first weights are computed by what a CPU has for float32 only.
            llm = AutoModelForCausalLM.from_config(self.tiny).bfloat16()
        # Those too that transformers keeps in float32: ZeRO-3 knows one type.
        for parameter in llm.parameters():
            parameter.data = parameter.data.bfloat16()
        try:
            _packed_logits(self._as_trained(llm), self.samples, road)
        except Exception as error:
            return _first_line(error)
        return None

    def fault(self, road: str) -> str | None:
        """What is wrong with a road, None when it is exact."""
        llm = self._copy()
        try:
            logits = _packed_logits(llm, self.samples, road)
            gradients = self._gradients(logits, llm)
        except Exception as error:
            return _first_line(error)
        fault = self._logits_fault(logits)
        if fault is not None:
            return fault
        for name, truth in self.gradients.items():
            found = gradients[name]
            if truth is None and found is None:
                continue
            truth, found = _or_zero(truth), _or_zero(found)
            off = float((truth - found).abs().max()) / max(1.0, float(truth.abs().max()))
            if not off < GRADIENT_TOLERANCE[self.llm.dtype]:
                return f"the gradient of {name} differs from that of each sample alone by {off:.1g}"
        return None


def _or_zero(gradient: torch.Tensor | None) -> torch.Tensor:
    """An expert that no token chose has no gradient; if only padding chose it, it is zero."""
    if gradient is None:
        return torch.zeros(())
    return gradient


def _packed_logits(llm: PreTrainedModel, samples: list[torch.Tensor], road: str) -> torch.Tensor:
    lengths = [ids.shape[1] for ids in samples]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    positions = torch.cat([torch.arange(length) for length in lengths])
    embeds = llm.get_input_embeddings()(torch.cat(samples, dim=1))
    outputs = run_packed_llm(
        llm, embeds, cu_seqlens, max(lengths), road, LLMAttention(), position_ids=positions[None]
    )
    return final_logits(llm, outputs.last_hidden_state)[0]


def _with_drawn_weights(llm: PreTrainedModel) -> PreTrainedModel:
    """Weights large enough that every layer matters, and nothing at a symmetric start value."""
    with torch.no_grad():
        for parameter in llm.parameters():
            noise = torch.randn(parameter.shape)
            if parameter.ndim >= 2:
                parameter.copy_(0.3 * noise)
            else:
                parameter.add_(0.1 * noise)
    return llm


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def _refusal(
    config: PretrainedConfig,
    row: int,
    limits: Limits,
    faults: tuple[str, ...],
    implementation: str | None,
) -> str:
    """One sentence: what was found, and what to do."""
    for name, tokens, _ in sorted(limits, key=lambda limit: -limit[1]):
        try:
            prove_packing(config, tokens, implementation=implementation)
        except PackingError:
            continue
        return (
            f"the LLM ({config.model_type}) is not exact on packed samples of more than {tokens} "
            f"tokens, its {name} ({faults[0]}); set batch.tokens_per_pack, now {row}, to at "
            f"most {tokens}"
        )
    shown = faults[0]
    if len(faults) > 1:
        shown = "; ".join(f"{road}: {fault}" for road, fault in zip(ROADS, faults, strict=True))
    return (
        f"the LLM ({config.model_type}) cannot train on packed samples exactly with transformers "
        f"{transformers.__version__} ({shown}); docs/models.md lists families and "
        "versions that can"
    )
