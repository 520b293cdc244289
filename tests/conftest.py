"""What the tests share: one thread, few hypothesis examples, a tiny model with strong opinions, ragged rows."""

import os
import random

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin cost the tests beside them

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from nanoreason import run
from nanoreason.model import ModelConfig, Transformer
from nanoreason.rollout import Problem, Rollout

# `--hypothesis-profile thorough` tries many more, and different ones each time.
FIXTURES_ARE_PURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
settings.register_profile(
    "few", deadline=None, max_examples=12, derandomize=True, database=None, suppress_health_check=FIXTURES_ARE_PURE
)
settings.register_profile(
    "thorough", deadline=None, max_examples=300, database=None, suppress_health_check=FIXTURES_ARE_PURE
)
settings.register_profile(  # for tests that are expected to fail: the first failing example will do
    "first", settings.get_profile("few"), phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("few")
torch.set_num_threads(int(os.environ.get("NANOREASON_TEST_THREADS", "1")))  # `make test-portable`
run.LINE_SECONDS = float("inf")  # no line of progress, which comes by the clock, between what is tested

VOCAB = 24


class Stop:
    """Raises KeyboardInterrupt at the `count`-th call of a function, before it or after it."""

    def __init__(self, patch, owner, name, count, after=False):
        self.calls, self.fired = 0, False
        real = getattr(owner, name)

        def stopping(*args, **kwargs):
            self.calls += 1
            if self.calls == count and not after:
                self.fired = True
                raise KeyboardInterrupt
            result = real(*args, **kwargs)
            if self.calls == count and after:
                self.fired = True
                raise KeyboardInterrupt
            return result

        patch.setattr(owner, name, stopping)


@pytest.fixture(scope="session")
def stop_at():
    """stop_at(patch, owner, name, count, after=False): a function that stops the run at its `count`-th call."""
    return Stop


@pytest.fixture(scope="session")
def make_model():
    """make_model(seed, **fields of ModelConfig): a tiny transformer whose next-token distributions are peaky.

    Freshly initialised weights give nearly uniform distributions, under which most errors are too small to see.
    """

    def make(seed: int = 0, **fields) -> Transformer:
        shape = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
                 "max_position_embeddings": 64}  # fmt: skip
        model = Transformer(ModelConfig(**{**shape, **fields}))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if name.startswith(("model.embed_tokens", "lm_head")):
                    parameter.copy_(0.4 * noise)
                elif parameter.ndim == 2:
                    parameter.copy_(1.5 * noise / parameter.shape[1] ** 0.5)
                else:  # the weights of norms and the biases
                    parameter.add_(0.3 * noise)
        return model

    return make


@pytest.fixture(scope="session")
def model(make_model) -> Transformer:
    """One such model for tests that only read it."""
    return make_model(1)


@pytest.fixture(scope="session")
def copy_rows():
    """copy_rows(rows): the same rows as new objects, to be sampled again from the same state."""

    def copied(row: Rollout) -> Rollout:
        return Rollout(row.problem, list(row.tokens), list(row.loss_mask), list(row.logprobs), row.prompt_len, row.seed,
                       row.draws, row.max_new_tokens, row.stop_reason, row.reward, row.advantage)  # fmt: skip

    return lambda rows: [copied(row) for row in rows]


@pytest.fixture(scope="session")
def prompt_only():
    """prompt_only(tokens, seed, max_new_tokens): a row of these prompt tokens, ready to be sampled."""

    def make(tokens: list[int], seed: int = 0, max_new_tokens: int | None = None) -> Rollout:
        n = len(tokens)
        problem = Problem(f"prompt {tokens}", "")
        return Rollout(problem, list(tokens), [False] * n, [0.0] * n, n, seed, max_new_tokens=max_new_tokens)

    return make


@pytest.fixture(scope="session")
def ragged(prompt_only):
    """ragged(count, seed): prompts of 1 to 12 random tokens (0, the EOS, among them), each with a budget of 1 to 30."""

    def make(count: int, seed: int = 0, budget: int = 30) -> list[Rollout]:
        generator = random.Random(seed)
        return [
            prompt_only(
                generator.choices(range(VOCAB), k=generator.randint(1, 12)),
                seed=generator.getrandbits(64),
                max_new_tokens=generator.randint(1, budget),
            )
            for _ in range(count)
        ]

    return make


@pytest.fixture(scope="session")
def finished(ragged):
    """finished(count, seed): rows as they come back from a sampler: prompt, sampled and forced tokens, advantage."""

    def make(count: int, seed: int = 0, longest: int = 20) -> list[Rollout]:
        generator = random.Random(seed)
        rows = ragged(count, seed)
        for row in rows:
            for _ in range(generator.randint(1, longest)):
                if generator.random() < 0.2:
                    row.force([generator.randrange(VOCAB)])
                else:
                    row.sampled(generator.randrange(VOCAB), -3 * generator.random())
            row.sampled(0, -generator.random())
            row.advantage = generator.uniform(-1, 1)
            row.reward = float(row.advantage > 0)
        return rows

    return make


@pytest.fixture
def count_hidden(monkeypatch):
    """count_hidden(model): a list that grows by the (rows, tokens) of every forward pass of this model."""

    def watch(model: Transformer) -> list[tuple[int, int]]:
        shapes: list[tuple[int, int]] = []
        inner = model.hidden

        def hidden(tokens, *context):
            shapes.append(tuple(tokens.shape))
            return inner(tokens, *context)

        monkeypatch.setattr(model, "hidden", hidden)
        return shapes

    return watch


@pytest.fixture(scope="session")
def assert_same_weights():
    """assert_same_weights(a, b): equal bit for bit, weight by weight."""

    def check(a: Transformer, b: Transformer) -> None:
        mine, theirs = a.state_dict(), b.state_dict()
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert torch.equal(mine[name], theirs[name]), name

    return check


@pytest.fixture(scope="session")
def saved_bytes():
    """saved_bytes(model, tokens): what a forward pass keeps for the backward pass, weights and tables aside."""

    def bytes_of(model: Transformer, tokens: torch.Tensor) -> int:
        own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
        kept = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage  # held, so that no other one gets its address
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model.hidden(tokens)
        assert hidden.grad_fn is not None
        return sum(storage.nbytes() for storage in kept.values())

    return bytes_of
