"""The one sampling loop: rows come back when they stop; put them back if they should go on.

    sampler = Sampler(model, tokenizer, stop=("</answer>",), temperature=1.0, max_new_tokens=128)
    sampler.submit(prompt_rows(tokenizer, problems, group_size=16))
    for row in sampler:                       # each row, the moment it stops: stop text, stop id, EOS or budget
        if closes_its_thinking_too_early(row):
            row.retract(); row.force(wait); sampler.submit([row])

`generate(sampler, rows, on_stop)` is this loop with its body as a function. Rollouts, budget forcing, spawn / join,
majority voting and evaluation are all made of it. How it works:

* Live rows are the slots [:n] of a KV cache; one decode step adds one token to each of them. Keys, tokens, log-probs
  and random numbers all live at (slot, position): slot j of a row is about its token at position j.
* A row that stops is swapped behind the live ones and handed out. New rows take slots from n on (continuous
  batching), so no step is spent on a row that is done. Until then a stopped row's keys stay where they are: submit it
  again and it goes on with only the new tokens to be read.
* Prompts are read (`_prefill`) up to their last token, a prompt shared by a group once; the last token is the first
  decode step's input. The cache is only as long as the longest row so far, so that attention reads no further.
* A row that must go on (`min_tokens`) draws from the distribution without its stops; its log-probs say so too.
* The k-th draw of a row inverts the CDF at `uniforms(row.seed)[k]`. A sample is therefore a function of the weights,
  the row and its numbers: not of the rows beside it, nor of when they leave. Its log-prob comes from the same softmax.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch

from nanoreason.model import KVCache, Transformer
from nanoreason.rollout import Rollout
from nanoreason.run import Progress, autocast
from nanoreason.tokenizer import TextTokenizer

PREFILL_TOKENS = 16_384  # prompt tokens read at once; bounds the memory of a prefill
COLDEST = 1e-6  # logits divided by less are no longer numbers
WIDEN = 32  # slots by which the cache grows when the longest row reaches its end


def uniforms(seed: int, start: int, count: int) -> np.ndarray:
    """Numbers start .. start+count-1 of a row's own stream in [0, 1): 48 bits, counter-based, the same everywhere.

    The first 24 bits alone would leave 2^24 different draws: of 150,000 tokens many would have none of them.
    """
    first, second = (
        np.random.Generator(np.random.Philox(key=key)).random(start + count, dtype=np.float32)[start:]
        for key in (seed, seed + (1 << 64))
    )
    return first + np.float64(2**-24) * second


def draw(
    logits: torch.Tensor, u: torch.Tensor, temperature: float, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits (B, V), u (B,) in [0, 1) -> tokens (B,), log-probs (B,) of the distribution they were drawn from.

    Temperature 0 takes the most likely token; its log-prob is then the one at temperature 1. With top_p < 1 only the
    most likely tokens that together reach top_p can be drawn, and the log-prob is that of this truncated distribution.

    Sums over the vocabulary are float64: 150,000 float32 additions lose the small probabilities, up to 98 % of the
    tokens, and shift every log-prob by up to 6e-4 in one direction.
    """
    exact = torch.float32 if logits.device.type == "mps" else torch.float64  # MPS has no float64
    # <exercise sampling>
    if temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    probs = (logits / temperature).softmax(-1)  # (B, V)
    if top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        outside = ordered.cumsum(-1, dtype=exact) - ordered >= top_p  # the mass before a token already reaches top_p
        probs = probs.masked_fill(outside.gather(-1, order.argsort(-1)), 0)
    cdf = probs.cumsum(-1, dtype=exact)
    total = cdf[:, -1:]
    # Just below the total: rounding must not reach past the last token that has any probability.
    target = torch.minimum(u[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    tokens = torch.searchsorted(cdf, target, right=True)  # (B, 1): the first token whose CDF exceeds the target
    tokens.clamp_(max=logits.shape[-1] - 1)  # where a logit is NaN or inf, none does, and the log-prob is NaN
    return tokens[:, 0], (probs.gather(-1, tokens) / total).log()[:, 0].float()
    # </exercise sampling>


class Sampler:
    """An iterator over stopped rows. One sampler serves one set of weights: make a new one after an update. Weights
    that changed since it was made are a RuntimeError at the next row: the keys in its cache are of the old ones.

    tokenizer       gives the EOS ids, and reads stop texts; or `eos_id` alone, one id or several (None: rows end by
                    stop ids and budgets)
    stop            texts that hand a row back, however they are cut into tokens; the row's last token completes one
    temperature     0 is greedy
    max_new_tokens  budget of rows that name none of their own
    stop_ids        tokens that hand a row back, EOS aside; the stop token is the row's last token
    max_rows        rows decoded at once; kv_bytes lowers it where the cache would grow too large
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: TextTokenizer | None = None,
        *,
        eos_id: int | tuple[int, ...] | None = None,
        stop: tuple[str, ...] = (),
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        stop_ids: tuple[int, ...] = (),
        max_rows: int = 512,
        kv_bytes: int = 4 << 30,
    ):
        # each weight with its counter of in-place changes; writes through `.data` have none, and are not seen
        self.weights = [
            (module._parameters, name, weight, weight._version)
            for module in model.modules()
            for name, weight in module._parameters.items()
            if weight is not None
        ]
        if not (temperature == 0 or COLDEST <= temperature < math.inf):  # NaN is in no range
            raise ValueError(f"temperature {temperature}: 0 for greedy, or finite and at least {COLDEST}")
        if not 0 < top_p <= 1 or max_rows < 1:
            raise ValueError(f"top_p {top_p}, max_rows {max_rows}: needs (0, 1] and >= 1")
        eos_id = tokenizer.eos_ids if tokenizer is not None else eos_id
        self.model, self.max_new_tokens = model, max_new_tokens
        self.tokenizer, self.stop = tokenizer, stop
        self.eos_ids = () if eos_id is None else (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
        self.temperature, self.top_p, self.max_rows, self.kv_bytes = temperature, top_p, max_rows, kv_bytes
        self.context = model.config.max_position_embeddings
        self.stops = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=model.device)
        self.stops[[*stop_ids, *self.eos_ids]] = True
        # tokens that may complete a stop text: whether one does is read in the row's text
        self.candidates = torch.zeros_like(self.stops)
        self.candidates[[i for text in stop for i in may_complete(tokenizer, text)]] = True
        self.blocked = self.stops | self.candidates  # what cannot be drawn while a row has fewer than min_tokens
        self.queue: deque[Rollout] = deque()  # submitted, not yet in a slot
        self.finished: deque[Rollout] = deque()  # stopped, not yet handed out
        # slot -> row: [:n] are live, behind them lie stopped rows whose keys are still there
        self.rows: list[Rollout | None] = []
        self.n = 0
        self.held: set[Rollout] = set()  # stopped rows that will go on: their slots are taken last
        self.cache: KVCache | None = None
        self.steps = 0  # decode steps so far
        self.row_steps = 0  # live rows summed over them: the work really done

    # ------------------------------------------------------------------------------------------------ the interface

    def submit(self, rows: list[Rollout]) -> None:
        """Queue rows to be continued to their next stop. A row that cannot even start is an error that names it."""
        self._check_weights()
        waiting = {id(row) for row in [*self.queue, *self.rows[: self.n], *self.finished]}
        for i, row in enumerate(rows):
            if not row.tokens:
                raise ValueError(f"row {i}: its prompt is empty, there is nothing to continue")
            if len(row.tokens) >= self.context:
                raise ValueError(
                    f"row {i}: {len(row.tokens)} tokens leave no room in the model's context of {self.context} "
                    f"(prompt starts {row.problem.prompt[:40]!r})"
                )
            if id(row) in waiting:
                raise ValueError(f"row {i} is already being sampled: submit it again only after it came back")
            waiting.add(id(row))
        self.held.difference_update(rows)
        for row in rows:
            if len(row.tokens) >= self._end(row):  # no budget left: it stops where it stands
                row.stop_reason = "length"
                self.finished.append(row)
            else:
                row.stop_reason = ""
                # Rows whose keys are still here go first, before new rows take their slots.
                (self.queue.appendleft if row in self.rows else self.queue.append)(row)

    def hold(self, row: Rollout) -> None:
        """Keep the keys of a row that was handed out and waits for others, where `max_rows` leaves room for them."""
        self.held.add(row)

    def _check_weights(self) -> None:
        """RuntimeError if a weight was written to or replaced; microseconds beside a decode step's millisecond."""
        for owner, name, weight, version in self.weights:
            if weight._version != version or owner.get(name) is not weight:
                raise RuntimeError(
                    "the model's weights changed since this sampler was made, so its keys are stale: make a new Sampler"
                )

    def finish(self, rows: list[Rollout]) -> list[Rollout]:
        """Submit rows, run until all have stopped, and return them in the order given."""
        self.submit(rows)
        for _ in self:
            pass
        return rows

    def __iter__(self) -> Iterator[Rollout]:
        return self

    @torch.inference_mode()
    def __next__(self) -> Rollout:
        self._check_weights()  # whoever has the rows in between may have trained on them
        with autocast(self.model.device):
            while not self.finished:
                # Only now, when every stopped row was handed out: one that was submitted again still has its keys.
                if self.queue:
                    self._admit()
                if not self.n:
                    raise StopIteration
                self._step()
        return self.finished.popleft()

    # ------------------------------------------------------------------------------------------------- decoding

    def _step(self) -> None:
        """One token for every live row; rows that stop move to `finished`, in the order of their slots."""
        self._widen(int(self.host_position[: self.n].max()) + 1)
        stopped = self._decode(self.cache.view(0, self.n), self.n)
        self.host_position[: self.n] += 1
        self.steps += 1
        self.row_steps += self.n
        slots = [slot for slot in stopped.nonzero()[:, 0].tolist() if not self.stop or self._ends(slot)]
        self.finished += [self.rows[slot] for slot in slots]
        for slot in reversed(slots):  # from behind, so that a swap moves no slot that is still to come
            self._retire(slot)

    def _ends(self, slot: int) -> bool:
        """Whether the row in `slot` is really done, and not just at a token that could have completed a stop text."""
        row, length = self.rows[slot], int(self.host_position[slot]) + 1
        if length >= self._end(row) or math.isnan(self.logprobs[slot, length - 1]):
            return True
        tokens = self.tokens[slot, row.prompt_len : length].tolist()
        return bool(self.stops[tokens[-1]]) or completes(self.tokenizer, tokens, self.stop)

    def _decode(self, cache: KVCache, n: int) -> torch.Tensor:
        """The decode step: static shapes, no branch on values, no copy to the host. Returns which rows stopped (n,)."""
        here = self.position[:n, None]  # (n, 1): where each row's last token stands, the input of this step
        logits = self.model(self.tokens[:n].gather(1, here), here, cache)[:, 0].float()  # (n, V)
        broken = logits.sum(-1) * 0  # (n,): 0, or NaN where some logit is not finite
        closed = self.blocked & (here + 1 < self.min_tokens[:n, None])  # (n, V): what cannot be drawn
        if self.model.no_token is not None:
            closed |= self.model.no_token
        logits = logits.masked_fill(closed, -torch.inf)
        token, logprob = draw(logits, self.uniform[:n].gather(1, here)[:, 0], self.temperature, self.top_p)
        logprob += broken
        here += 1  # a view: self.position moves on with it
        self.tokens[:n].scatter_(1, here, token[:, None])
        self.logprobs[:n].scatter_(1, here, logprob[:, None])
        return self.blocked[token] | (self.position[:n] + 1 >= self.end[:n]) | logprob.isnan()

    def _retire(self, slot: int) -> None:
        """Hand the row in `slot` its new tokens and swap it behind the live ones."""
        row = self.rows[slot]
        new = slice(len(row.tokens), int(self.host_position[slot]) + 1)
        for token, logprob in zip(self.tokens[slot, new].tolist(), self.logprobs[slot, new].tolist(), strict=True):
            if math.isnan(logprob):
                raise FloatingPointError(
                    f"the logits of the row with prompt {row.problem.prompt[:60]!r} are not finite after "
                    f"{len(row.tokens)} tokens: a weight is not finite, or too large"
                )
            row.sampled(token, logprob)
        row.stop_reason = "eos" if token in self.eos_ids else "stop" if self._is_stop(row, token) else "length"
        self.n -= 1
        self._swap(slot, self.n)

    def _is_stop(self, row: Rollout, token: int) -> bool:
        """Whether the row's last token is a stop id or completes a stop text; at its budget's end it may be neither."""
        return bool(self.stops[token]) or (
            bool(self.candidates[token]) and completes(self.tokenizer, row.response, self.stop)
        )

    # ------------------------------------------------------------------------------------------------- admission

    def _end(self, row: Rollout) -> int:
        """Tokens the row may have in all."""
        budget = self.max_new_tokens if row.max_new_tokens is None else row.max_new_tokens
        return min(row.prompt_len + budget, self.context)

    def _admit(self) -> None:
        """Move queued rows into slots and read what of them is not in the cache yet."""
        self._reserve()
        free = len(self.rows) - self.n
        if self.n and free < min(len(self.queue), 1 + len(self.rows) // 16):
            return  # a few slots at a time make larger prefills, and live rows lose nothing by it
        first = self.n
        source = {tuple(row.tokens[: row.prompt_len]): slot for slot, row in enumerate(self.rows[:first])}
        chosen = [self.queue.popleft() for _ in range(min(free, len(self.queue)))]
        self._spare_held(len(chosen))
        fresh = []
        for row in chosen:
            if row in self.rows:  # it came back before its slot was taken
                self._swap(self.rows.index(row), self.n)
                self._start(row, reuse=True)
            else:
                fresh.append(row)
        copies = []  # a prompt is read once, by the first row that has it
        for row in sorted(fresh, key=lambda row: len(row.tokens)):  # equal lengths side by side: less padding
            if tuple(row.tokens) in source:
                copies.append(row)
            else:
                source[tuple(row.tokens)] = self.n
                self._start(row)
        self._prefill(first, self.n)
        if copies:
            targets = list(range(self.n, self.n + len(copies)))
            sources = [source[tuple(row.tokens)] for row in copies]
            self.cache.kv[:, :, targets] = self.cache.kv[:, :, sources]
            for row in copies:
                self._start(row)

    def _spare_held(self, count: int) -> None:
        """Swap rows that are held out of the next `count` slots, as far as there are others behind them."""
        others = [j for j in range(self.n + count, len(self.rows)) if self.rows[j] not in self.held]
        for slot in range(self.n, self.n + count):
            if self.rows[slot] in self.held and others:
                self._swap(slot, others.pop())

    def _start(self, row: Rollout, reuse: bool = False) -> None:
        """Make `row` the next live row, in slot n. `reuse`: the slot still holds keys of its earlier tokens."""
        slot, length, end = self.n, len(row.tokens), self._end(row)
        read = 0  # tokens from the front whose keys are in the cache
        if reuse:
            cached = self.tokens[slot, : int(self.host_position[slot])].tolist()  # keys of a last token are never made
            same = [a == b for a, b in zip(cached, row.tokens, strict=False)]
            read = same.index(False) if False in same else len(same)
        self.tokens[slot, :length] = torch.tensor(row.tokens)
        if self.temperature > 0:  # the draw made at position p uses uniform[slot, p]
            numbers = torch.from_numpy(uniforms(row.seed, row.draws, end - length))
            self.uniform[slot, length - 1 : end - 1] = numbers.to(self.uniform.dtype)
        self.end[slot] = end
        self.min_tokens[slot] = row.min_tokens
        self.position[slot] = self.host_position[slot] = length - 1
        self.read[slot] = min(read, length - 1)
        self.rows[slot] = row
        self.n += 1

    def _prefill(self, first: int, last: int) -> None:
        """Put the keys of slots first..last-1 into the cache, up to each row's last token."""
        while first < last:
            stop, width = first, 0
            while stop < last:  # as many rows as fit the token budget, at least one
                wider = max(width, int(self.host_position[stop] - self.read[stop]))
                if stop > first and wider * (stop + 1 - first) > PREFILL_TOKENS:
                    break
                stop, width = stop + 1, wider
            if width:
                start = torch.from_numpy(self.read[first:stop]).to(self.model.device)[:, None]
                positions = start + torch.arange(width, device=self.model.device)  # (B, T)
                # A shorter row's surplus lands on positions it has not reached: invisible, and overwritten in time.
                positions.clamp_(max=self.tokens.shape[1] - 1)
                self._widen(min(int(self.read[first:stop].max()) + width, self.tokens.shape[1]))
                tokens = self.tokens[first:stop].gather(1, positions)
                self.model.hidden(tokens, positions, self.cache.view(first, stop))
            first = stop

    # ---------------------------------------------------------------------------------------------------- memory

    def _reserve(self) -> None:
        """Grow the cache to what the queue asks for, within max_rows and kv_bytes."""
        old_rows, old_slots = (len(self.rows), self.tokens.shape[1]) if self.cache else (0, 0)
        slots = max([old_slots, *(self._end(row) for row in self.queue)])
        device = self.model.device
        dtype = torch.bfloat16 if torch.is_autocast_enabled(device.type) else self.model.lm_head.weight.dtype
        affordable = self.kv_bytes // (slots * KVCache.bytes_per_slot(self.model.config, dtype))
        most = max(1, self.n, min(self.max_rows, affordable))
        rows = min(most, max(self.n + len(self.queue) + len(self.held), old_rows))
        if rows <= old_rows and slots == old_slots:
            return
        if rows > old_rows:
            rows = min(most, max(rows, 2 * old_rows))  # doubling, so that growing row by row stays linear
        if self.cache:
            self.cache.resize(rows, self.cache.slots)
        else:
            self.cache = KVCache(self.model.config, rows, 1, device, dtype)
        old, keep = self._per_slot() if old_rows else [], min(rows, old_rows)
        self.tokens = torch.zeros(rows, slots, dtype=torch.int64, device=device)
        self.logprobs = torch.zeros(rows, slots, device=device)
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.uniform = torch.zeros(rows, slots, device=device, dtype=exact)  # u for the draw made at (slot, position)
        self.position = torch.zeros(rows, dtype=torch.int64, device=device)  # of the last token
        self.end = torch.zeros(rows, dtype=torch.int64, device=device)  # tokens the row may have in all
        self.min_tokens = torch.zeros(rows, dtype=torch.int64, device=device)  # tokens before which it cannot stop
        self.host_position = np.zeros(rows, dtype=np.int64)  # `position`, readable without waiting for the device
        self.read = np.zeros(rows, dtype=np.int64)  # tokens from the front that were in the cache when the row started
        self.rows = self.rows[:keep] + [None] * (rows - keep)
        for now, before in zip(self._per_slot(), old, strict=bool(old)):
            if now.ndim == 2:
                now[:keep, :old_slots] = before[:keep]
            else:
                now[:keep] = before[:keep]

    def _widen(self, slots: int) -> None:
        """Make room in the cache for positions below `slots`."""
        if slots > self.cache.slots:
            slots, most = slots + WIDEN, self.tokens.shape[1]
            self.cache.resize(len(self.rows), slots if slots + WIDEN // 2 < most else most)  # no tiny last step

    def _per_slot(self) -> list:
        """Everything but the keys that is stored per slot."""
        on_device = [self.tokens, self.logprobs, self.uniform, self.position, self.end, self.min_tokens]
        return [*on_device, self.host_position, self.read]

    def _swap(self, i: int, j: int) -> None:
        """Exchange two slots with all that lies in them."""
        if i == j:
            return
        for stored in [*self._per_slot(), self.cache.kv.transpose(0, 2)]:
            stored[[i, j]] = stored[[j, i]]
        self.rows[i], self.rows[j] = self.rows[j], self.rows[i]


# ---------------------------------------------------------------------------------------------------- the loop itself


def generate(
    sampler: Sampler,
    rows: list[Rollout],
    on_stop: Callable[[Rollout], list[Rollout]] | None = None,
    name: str = "sample",
) -> list[Rollout]:
    """Sample `rows` to their end; they are returned in the order given.

    `on_stop(row)` is called each time a row stops, and returns the rows to (re)submit: the same row to let it go on,
    new rows that it spawns, or none when it is done.
    """
    sampler.submit(rows)
    with Progress(total=len(rows), name=name, unit="rows") as progress:
        for row in sampler:
            again = on_stop(row) if on_stop else []
            sampler.submit(again)
            if not again:
                progress.update(count=row.parent is None, tokens=len(row.response))
    return rows


def completes(tokenizer: TextTokenizer, tokens: list[int], stop: tuple[str, ...]) -> bool:
    """Whether the last of `tokens` (T) completes one of the texts."""
    tail = tokens[-max(map(len, stop)) - 8 :]  # a token has a character or more, but for broken bytes
    now, before = tokenizer.decode(tail), tokenizer.decode(tail[:-1])
    return any(now.count(text) > before.count(text) for text in stop)


@functools.lru_cache(maxsize=16)  # a pretrained vocabulary has 150,000 tokens
def may_complete(tokenizer: TextTokenizer, text: str) -> tuple[int, ...]:
    """The tokens that `text` may end in, however it is spelled: whether it is complete is read in the text."""
    return tokenizer.ids_that_complete(text)
