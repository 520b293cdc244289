"""The optimizers: AdamW and Muon beside torch's, batches of matrices, resume, versions, no compiler at start-up."""

import copy
import subprocess
import sys

import pytest
import torch

from nanoreason import processes
from nanoreason.learn import make_optimizer, update
from nanoreason.optim import SGD, AdamW, Muon, orthogonalize

OPTIMIZERS = {"sgd": SGD, "adamw": AdamW, "muon": Muon}


def set_gradients(model, step: int) -> None:
    """Gradients of very different sizes, as they are in training, a function of the step."""
    generator = torch.Generator().manual_seed(step)
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = 10.0 ** (-i % 5) * torch.randn(parameter.shape, generator=generator)


def rate(step: int) -> float:
    return 1e-3 * (1 + step % 3)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95)])
def test_adamw_equals_torchs_over_twenty_steps(make_model, betas, weight_decay):
    model = make_model(0)
    twin = copy.deepcopy(model)
    ours = AdamW(model, betas=betas, weight_decay=weight_decay)
    theirs = torch.optim.AdamW(twin.parameters(), betas=betas, weight_decay=weight_decay)
    for step in range(20):
        for each in (model, twin):
            set_gradients(each, step)
        ours.step(rate(step))
        theirs.param_groups[0]["lr"] = rate(step)
        theirs.step()
        for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=f"{name}, step {step}")


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bucket", [1, 700, 1 << 20])
def test_a_measured_step_is_the_step_and_says_how_far_it_went(make_model, monkeypatch, name, bucket):
    """In parts of any size: only what Muon does to several matrices at once is another rounding."""
    monkeypatch.setattr(processes, "BUCKET", bucket)
    model = make_model(0)
    twin = copy.deepcopy(model)
    ours, plain = OPTIMIZERS[name](model), OPTIMIZERS[name](twin)
    for step in range(3):
        for each in (model, twin):
            set_gradients(each, step)
            each.lm_head.weight.grad = None  # not all of them need a gradient
        before = [w.detach().double() for w in twin.parameters()]
        plain.step(rate(step))
        moved = sum((w.detach() - old).square().sum() for w, old in zip(twin.parameters(), before, strict=True))
        ratio = ours.measured_step(rate(step))
        assert ratio == pytest.approx(float(moved / sum(old.square().sum() for old in before)) ** 0.5, rel=1e-4)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6 if name == "muon" else 0)
    assert all(w.grad is None for w in model.parameters())


def test_moments_that_are_rounded_at_random_are_the_same_however_the_step_is_cut(make_model, monkeypatch):
    monkeypatch.setattr(processes, "BUCKET", 700)
    model = make_model(0)
    twin = copy.deepcopy(model)
    ours, plain = (OPTIMIZERS["adamw"](each, moments="bfloat16") for each in (model, twin))
    for step in range(5):
        for each in (model, twin):
            set_gradients(each, step)
        plain.step(1e-2)
        ours.measured_step(1e-2)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def reference_muon_step(w, g, memory, lr, weight_decay, momentum=0.95):
    """One matrix, written as Jordan's post and Liu et al. do; torch.optim.Muon is this in bfloat16."""
    memory.mul_(momentum).add_(g, alpha=1 - momentum)
    x = (1 - momentum) * g + momentum * memory
    tall = x.shape[0] > x.shape[1]
    x = (x.T if tall else x) / x.norm()
    for _ in range(5):
        A = x @ x.T
        x = 3.4445 * x + (-4.7750 * A + 2.0315 * A @ A) @ x
    w.mul_(1 - lr * weight_decay).sub_(x.T if tall else x, alpha=lr * 0.2 * max(w.shape) ** 0.5)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muon_equals_the_plain_algorithm_on_matrices_and_adamw_on_the_rest(make_model, weight_decay):
    model = make_model(1, model_type="qwen2", tie_word_embeddings=False)  # with biases, and a head of its own
    twin = copy.deepcopy(model)
    start = copy.deepcopy(model)
    ours, memory = Muon(model, weight_decay=weight_decay), {}
    rest = {n: p for n, p in twin.named_parameters() if p.ndim == 1 or "embed_tokens" in n or "lm_head" in n}
    assert len(rest) < len(dict(twin.named_parameters()))
    theirs = torch.optim.AdamW(rest.values(), weight_decay=weight_decay)
    for step in range(20):
        for each in (model, twin):
            set_gradients(each, step)
        ours.step(rate(step))
        theirs.param_groups[0]["lr"] = rate(step)
        theirs.step()
        with torch.no_grad():
            for name, w in twin.named_parameters():
                if name not in rest:
                    reference_muon_step(
                        w, w.grad, memory.setdefault(name, torch.zeros_like(w)), rate(step), weight_decay
                    )
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0, msg=name)
        assert (a - start.get_parameter(name)).abs().max() > 1e-3, name


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_is_torchs_up_to_its_bfloat16(make_model):
    model = make_model(2)
    twin = copy.deepcopy(model)
    name = "model.layers.0.mlp.gate_proj.weight"
    start, w = model.get_parameter(name).detach().clone(), twin.get_parameter(name)
    ours = Muon(model, weight_decay=0.1)
    theirs = torch.optim.Muon([w], weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(5):
        for each in (model, twin):
            set_gradients(each, step)
        ours.step(1e-2)
        theirs.param_groups[0]["lr"] = 1e-2
        theirs.step()
    moved = (w - start).norm()
    assert (model.get_parameter(name) - w).norm() < 0.05 * moved


def test_orthogonalize_keeps_the_singular_vectors_and_makes_the_values_about_one():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 8, 20, generator=generator)
    matrices[1] *= 1e-3  # neither the scale nor the neighbours in the batch matter
    found = orthogonalize(matrices)
    torch.testing.assert_close(found[1:2], orthogonalize(matrices[1:2]), atol=1e-5, rtol=0)
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() and values.max() < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    inside = u.mT @ found @ v.mT  # (3, 8, 8): diagonal if the vectors are the same
    torch.testing.assert_close(inside, torch.diag_embed(inside.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0)
    assert not orthogonalize(torch.zeros(1, 4, 4)).any()  # and no NaN


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_a_step_moves_what_has_a_gradient_raises_its_version_and_leaves_the_rest(make_model, name):
    model = make_model(3)
    before, optimizer = copy.deepcopy(model), OPTIMIZERS[name](model, *([] if name == "sgd" else [(0.9, 0.99), 0.1]))
    optimizer.step(1.0)  # no gradient at all
    set_gradients(model, 0)
    without = "model.layers.0.mlp.gate_proj.weight"
    model.get_parameter(without).grad = None
    versions = {n: p._version for n, p in model.named_parameters()}
    optimizer.step(1e-2)
    for n, p in model.named_parameters():
        assert torch.equal(p, before.get_parameter(n)) == (n == without)
        assert (p._version == versions[n]) == (n == without)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_state_is_all_that_a_step_remembers(make_model, finished, assert_same_weights, name):
    """Three steps, or one, and two by a new optimizer that was given a copy of the state: bit-equal."""
    whole = make_model(4)
    optimizer = make_optimizer(whole, name)
    halves = None
    for step in range(3):
        if step == 1:
            halves, other = copy.deepcopy(whole), None
            other = make_optimizer(halves, name)
            for (n, p), q in zip(whole.named_parameters(), halves.parameters(), strict=True):
                assert n and optimizer.state[p]
                other.state[q] = {key: value.clone() for key, value in optimizer.state[p].items()}
        update(whole, optimizer, finished(4, seed=step), lr=1e-2)
        if halves is not None:
            update(halves, other, finished(4, seed=step), lr=1e-2)
    assert_same_weights(whole, halves)


def test_an_unknown_optimizer_is_one_clear_error(model):
    with pytest.raises(ValueError, match="adamw or muon"):
        make_optimizer(model, "adam")


def test_an_update_does_not_import_the_compiler():
    """Constructing an optimizer of torch.optim does, and that takes seconds."""
    program = """
import sys
from nanoreason.learn import make_optimizer, update
from nanoreason.model import ModelConfig, Transformer
from nanoreason.rollout import Problem, Rollout
model = Transformer(ModelConfig(num_hidden_layers=1))
row = Rollout(Problem("", ""), [1, 2, 3], [False, True, True], [0.0] * 3, 1, 0)
for name in ("adamw", "muon"):
    update(model, make_optimizer(model, name), [row], lr=1e-3)
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
