"""`--plan`: what a step will need of memory and time, and settings that fit, before anything is loaded.

    python train.py grpo --base FOLDER ... --plan            on this machine: two blocks of the model are timed
    python train.py grpo --base FOLDER ... --plan a100       on a card of that name: from stated rates, nothing is timed

Shapes are those of config.json, lengths those of the task's prompts, and every response is taken to be as long as
--max-new-tokens allows.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from nanoreason.memory import Memory
from nanoreason.plan_memory import Work, counted, halved, memory_of, peak
from nanoreason.plan_time import CARDS, backwards, block_flops, measured, seconds_of, stated
from nanoreason.run import say, table

GB = 1e9
RESERVED = 1.0  # GB of a card that its driver and gaps between tensors take
SIZES = (8, 16, 24, 80)  # GB, of the cards for which settings are proposed


def candidates(asked: Memory) -> list[Memory]:
    """Settings to try, from what was asked for to what changes most: the first three of them change a result by
    rounding at most."""
    less = replace(asked, recompute=True)
    some = [asked, less, replace(less, moments="cpu"), replace(less, moments="bfloat16"), replace(less, lora=16)]
    return list(dict.fromkeys(some))


def proposal(work: Work, budget: float) -> Work | None:
    """The first of the candidates that fits `budget` bytes of a card, in micro-batches as large as possible."""
    for memory in candidates(work.memory):
        micro = work.micro_tokens
        while micro >= min(work.length, work.micro_tokens):
            tried = replace(work, memory=memory, micro_tokens=micro)
            if peak(tried, on_card=True) <= budget:
                return tried
            micro //= 2
    return None


def flags_of(work: Work) -> str:
    m = work.memory
    parts = [f"--micro-tokens {work.micro_tokens}"]
    parts += [f"--memory.lora {m.lora}"] * bool(m.lora) + ["--memory.recompute"] * m.recompute
    parts += [f"--memory.moments {m.moments}"] * (m.moments != "float32")
    parts += [f"--memory.sample-dtype {m.sample_dtype}"] * halved(m)
    return " ".join(parts)


def report(work: Work, device: torch.device, card: str = "") -> None:
    """Print the plan of one step."""
    if card and card not in CARDS:
        raise ValueError(f"--plan {card}: one of {', '.join(CARDS)}, or nothing for this machine")
    N, T = counted(work.shape, work.memory)
    say(f"{N / 1e6:.1f} M weights, {T / 1e6:.1f} M trained; {work.rows} rows of {work.prompt} + {work.response} "
        f"tokens, {work.micro_rows} in a micro-batch")  # fmt: skip
    on_card = bool(card) or device.type == "cuda"
    phases = memory_of(work, on_card)
    parts = dict.fromkeys(name for phase in phases.values() for name, value in phase.items() if value)
    unit, name_of = (GB, "GB") if peak(work, on_card) >= GB else (GB / 1000, "MB")
    lines = [[name, *(f"{phase.get(name, 0) / unit:.2f}" for phase in phases.values())] for name in parts]
    lines.append(["sum", *(f"{sum(phase.values()) / unit:.2f}" for phase in phases.values())])
    say(f"\nmemory in {name_of}, by phase" + (" (bfloat16 passes; not measured)" if on_card else ""))
    say(table(["", *phases], lines))
    speed = stated(work, card) if card else measured(work, device)
    seconds = seconds_of(work, speed)
    rate = block_flops(work.shape, work.length) * backwards(work.memory) / speed.learn
    how = f"assumed for {card}" if card else f"measured on {device.type}"
    say(f"\nseconds a step, at {rate / 1e9:,.0f} GFLOP/s of a block ({how})")
    say(table([*seconds, "sum"], [[f"{value:.2f}" for value in [*seconds.values(), sum(seconds.values())]]]))
    say("\nwhat fits on a card (computed, not measured)")
    found = [(size, proposal(work, (size - RESERVED) * GB)) for size in SIZES]
    nothing = "nothing: fewer rows, shorter responses or a smaller base"
    said = [f"{flags_of(fit)}  ({peak(fit, True) / unit:.1f} {name_of})" if fit else nothing for _, fit in found]
    say("\n".join(f"{size:3} GB  {line}" for (size, _), line in zip(found, said, strict=True)))
