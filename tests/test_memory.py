"""What a run keeps in memory: the same gradients, fewer bytes."""

import pytest
import torch

from nanoreason.learn import make_optimizer, update
from nanoreason.lora import add_adapters
from nanoreason.memory import Memory, prepare

SHAPES = [{}, {"model_type": "qwen3", "tie_word_embeddings": False, "num_hidden_layers": 4}]


def saved_bytes(model, tokens) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights and tables aside."""
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


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_recomputed_gradients_are_equal_to_the_bit(make_model, finished, shape, rank):
    rows, found = finished(9), []
    for recompute in (False, True):
        model = make_model(1, **shape)
        prepare(model, Memory(lora=rank, recompute=recompute), 5)
        metrics = update(model, make_optimizer(model), rows, lr=1e-3, micro_tokens=60, entropy_coef=0.01)
        found.append((metrics, {name: weight.grad for name, weight in model.named_parameters()}, model.state_dict()))
    (metrics, gradients, weights), again = found[0], found[1]
    assert metrics == again[0]
    assert any(gradient is not None and gradient.any() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (gradient is None and again[1][name] is None) or torch.equal(gradient, again[1][name]), name
    assert all(torch.equal(weight, again[2][name]) for name, weight in weights.items())


@pytest.mark.parametrize("rank", [0, 3])
def test_recomputing_keeps_the_input_of_each_block_and_no_more(make_model, rank):
    model, tokens = make_model(1, num_hidden_layers=4), torch.ones(2, 30, dtype=torch.int64)
    if rank:
        add_adapters(model, rank)
    whole, own = saved_bytes(model, tokens), 60 * 32 * 4
    model.recompute = True
    kept = saved_bytes(model, tokens)
    ends = 60 * 8 + 2 * own + 60 * 4 if not rank else own + 60 * 4  # tokens of the embedding; the last norm
    assert kept == 4 * own + ends and whole > 5 * kept / 2


def test_sampling_and_measuring_recompute_nothing(make_model, monkeypatch):
    model = make_model(1)
    model.recompute = True
    monkeypatch.setattr("nanoreason.model.checkpoint", None)  # would be called
    with torch.no_grad():
        model.hidden(torch.ones(1, 3, dtype=torch.int64))
    with pytest.raises(TypeError):
        model.hidden(torch.ones(1, 3, dtype=torch.int64))
