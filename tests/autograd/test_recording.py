"""Error signals recorded layer by layer: right where torch's hooks are not, and bounded."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import normal
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torch_convbp as bp
from torch_convbp import modules
from torch_convbp.error_signals import recording
from torch_convbp.error_signals.recording import ErrorSignals, Record
from torch_convbp.error_signals.statistics import Statistics
from torch_convbp.ops.torch_private import constant_while_tracing

pytestmark = pytest.mark.every_device

WHAT = recording.WHAT


@pytest.fixture(autouse=True)
def _nothing_stays_on() -> Iterator[None]:
    yield
    assert recording._recordings == ()
    assert recording.here.layer is None and recording.here.outer == []


def hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def network(dtype: torch.dtype = torch.float64, g: str | None = "sigmoid") -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        bp.ConvBP2d(2, 4, 3, padding=1, activation=g, dtype=dtype),
        bp.ConvBP2d(4, 3, 3, stride=2, activation="silu", dtype=dtype),
        bp.ConvBP2d(3, 3, 2, bias=False, dtype=dtype),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        bp.LinearBP(3 * 2 * 2, 5, activation="tanh", dtype=dtype),
        bp.LinearBP(5, 3, dtype=dtype),
    )


LAYERS = ["0", "1", "2", "5", "6"]


def batch(dtype: torch.dtype = torch.float64) -> Tensor:
    return normal((4, 2, 8, 8), dtype, 1)


def loss(output: Tensor) -> Tensor:
    return output.square().mean()


def expected(model: nn.Sequential, input: Tensor) -> dict[str, dict[str, Tensor | None]]:
    """The same by torch's autograd, with every pre-activation written out and kept."""
    pre: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    leaves: dict[str, dict[str, Tensor]] = {}
    g = {"sigmoid": torch.sigmoid, "silu": F.silu, "tanh": torch.tanh, "relu": F.relu}
    a = input
    for name, layer in model.named_children():
        if not isinstance(layer, recording.Layer):
            a = F.relu(a) if isinstance(layer, nn.ReLU) else layer(a)
            continue
        inputs[name] = a = a * 1 if a.requires_grad else a
        own = {n: p.detach().clone().requires_grad_() for n, p in layer.named_parameters()}
        leaves[name] = own
        if isinstance(layer, nn.Conv2d):
            p = F.conv2d(a, own["weight"], own.get("bias"), layer.stride, layer.padding)
        else:
            p = F.linear(a, own["weight"], own.get("bias"))
        pre[name] = p
        for tensor in (p, *([a] if a.requires_grad else [])):
            tensor.retain_grad()
        activation = layer.activation
        a = p if activation is None else g[activation.name](p)
    loss(a).backward()
    return {
        name: {
            "delta": pre[name].grad,
            "input_grad": inputs[name].grad if inputs[name].requires_grad else None,
            "weight_grad": leaves[name]["weight"].grad,
            "bias_grad": leaves[name]["bias"].grad if "bias" in leaves[name] else None,
        }
        for name in pre
    }


def recorded(model: nn.Module, input: Tensor, **options: Any) -> ErrorSignals:
    with bp.record_error_signals(model, keep="tensors", **options) as signals:
        loss(model(input)).backward()
    return signals


def assert_equal(record: Record, want: dict[str, Tensor | None], eps: float) -> None:
    for what in WHAT:
        found, wanted = getattr(record, what), want[what]
        assert (found is None) == (wanted is None), what
        if wanted is not None:
            # Sums of at most some hundred terms, each layer's on top of the last one's.
            bound = 300 * eps * wanted.abs().max().item()
            torch.testing.assert_close(found, wanted, rtol=0, atol=bound)
            assert not found.requires_grad


@pytest.mark.parametrize("input_needs_grad", [True, False])
def test_recorded_is_what_autograd_computes(input_needs_grad: bool) -> None:
    """With fused activations and an in-place one, where torch's backward hooks fail."""
    model, input = network(), batch().requires_grad_(input_needs_grad)
    signals = recorded(model, input)
    assert list(signals) == signals.names() == LAYERS and len(signals) == 5
    for name, want in expected(model, batch().requires_grad_(input_needs_grad)).items():
        (record,) = signals[name]
        assert record.number == 0
        assert_equal(record, want, torch.finfo(torch.float64).eps)


def test_where_torch_hooks_fail() -> None:
    """The reason for all this; when torch can, the documentation should say so."""
    model = network()
    model[2].register_full_backward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="modified inplace"):
        loss(model(batch())).backward()


def test_gradients_are_left_as_they_are() -> None:
    model, other = network(), network()
    loss(model(batch())).backward()
    recorded(other, batch())
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and torch.equal(p.grad, q.grad)


def test_tensors_are_copies_and_hold_no_graph() -> None:
    model = network()
    signals = recorded(model, batch())
    before = copy.deepcopy(signals["1"][0].weight_grad)
    for p in model.parameters():
        assert p.grad is not None
        p.grad.fill_(7.0)
    assert torch.equal(signals["1"][0].weight_grad, before)
    output = model(batch())
    with bp.record_error_signals(model, keep="tensors") as signals:
        output = model(batch())
        node = weakref.ref(output.grad_fn)
        loss(output).backward()
        del output
        gc.collect()
        assert node() is None


def test_free_when_not_in_use() -> None:
    """No hooks, and nothing noted: the one trace is a None in each node."""
    model = network()
    assert hooks(model) == 0
    with bp.record_error_signals(model) as signals:
        assert hooks(model) == 2 * len(LAYERS)
        output = model(batch())
        assert output.grad_fn.layer is model[6]
        loss(output).backward()
    assert hooks(model) == 0
    output = model(batch())
    assert output.grad_fn.layer is None
    loss(output).backward()
    assert len(signals["0"]) == 1


@pytest.mark.parametrize("outside", ["forward", "backward"])
def test_forward_and_backward_must_be_inside(outside: str) -> None:
    model = network()
    output = model(batch())
    with (
        pytest.warns(UserWarning, match=r"nothing was recorded.*forward and the backward"),
        bp.record_error_signals(model) as signals,
    ):
        if outside == "forward":
            loss(output).backward()
        else:
            output = model(batch())
    loss(output).backward() if outside == "backward" else None
    assert not any(signals.values())


def test_an_exception_leaves_nothing_behind() -> None:
    model = network()
    with pytest.raises(RuntimeError, match="size"), bp.record_error_signals(model) as signals:
        loss(model(batch())).backward()
        model(normal((4, 3, 8, 8), torch.float64, 1))  # in the first layer's forward pass
    assert hooks(model) == 0 and recording.here.layer is None
    assert len(signals["0"]) == 1
    with pytest.raises(KeyboardInterrupt), bp.record_error_signals(model):
        raise KeyboardInterrupt
    assert hooks(model) == 0


def test_gradient_accumulation() -> None:
    """weight_grad is each pass's share; .grad is their sum."""
    model = network()
    with bp.record_error_signals(model, keep="tensors") as signals:
        for part in batch().split(2):
            loss(model(part)).backward()
    for name in LAYERS:
        first, second = signals[name]
        weight = model.get_submodule(name).weight
        assert (first.number, second.number) == (0, 1)
        torch.testing.assert_close(first.weight_grad + second.weight_grad, weight.grad)


def test_limit_bounds_what_is_kept() -> None:
    model = network()
    with bp.record_error_signals(model, limit=2) as signals:
        for _ in range(5):
            loss(model(batch())).backward()
    assert [record.number for record in signals["5"]] == [3, 4]
    signals.clear()
    assert not any(signals.values())
    for keep, limit in recording.LIMITS.items():
        records = ErrorSignals(model, keep, None)._records["0"]
        assert records.maxlen == limit


def test_a_layer_called_twice() -> None:
    layer = bp.ConvBP2d(2, 2, 3, padding=1, activation="tanh", dtype=torch.float64)
    model = nn.Sequential(layer, layer)
    signals = recorded(model, batch())
    assert signals.names() == ["0"]
    last, first = signals["0"]  # in the order of the backward pass
    assert last.input_grad is not None and first.input_grad is None
    torch.testing.assert_close(last.weight_grad + first.weight_grad, layer.weight.grad)
    torch.testing.assert_close(first.delta, (last.input_grad) * (1 - layer(batch()).square()))


def test_tied_weights() -> None:
    model = nn.Sequential(
        bp.ConvBP2d(2, 2, 3, padding=1, dtype=torch.float64),
        bp.ConvBP2d(2, 2, 3, padding=1, dtype=torch.float64),
    )
    model[1].weight = model[0].weight
    signals = recorded(model, batch())
    shares = [signals[name][0].weight_grad for name in ("0", "1")]
    torch.testing.assert_close(shares[0] + shares[1], model[0].weight.grad)


def test_frozen_weights() -> None:
    model = network()
    model[1].weight.requires_grad_(False)
    model[5].requires_grad_(False)
    signals = recorded(model, batch())
    assert signals["1"][0].weight_grad is None and signals["1"][0].bias_grad is not None
    assert signals["5"][0].weight_grad is None and signals["5"][0].bias_grad is None
    assert signals["5"][0].input_grad is not None
    model[0].requires_grad_(False)  # then no backward pass goes through it
    with bp.record_error_signals(model) as signals:
        loss(model(batch())).backward()
    assert signals["0"] == () and len(signals["1"]) == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_records_once(reentrant: bool) -> None:
    """The forward pass runs a second time, within the backward pass."""
    model, plain = network(), recorded(network(), batch())
    with bp.record_error_signals(model, keep="tensors") as signals:
        hidden = model[0](batch())
        hidden = checkpoint(model[1:5], hidden, use_reentrant=reentrant)
        loss(model[5:](hidden)).backward()
    for name in LAYERS:
        assert len(signals[name]) == 1
        assert torch.equal(signals[name][0].delta, plain[name][0].delta)


def test_autocast() -> None:
    model, input = network(torch.float32), batch(torch.float32)
    with bp.record_error_signals(model, keep="tensors") as signals:
        with torch.autocast("cpu", torch.bfloat16):
            output = model(input)
        loss(output.float()).backward()
    want = expected(network(torch.float32), input)
    for name in LAYERS:
        (record,) = signals[name]
        assert record.delta.dtype == record.weight_grad.dtype == torch.bfloat16
        assert model.get_submodule(name).weight.grad.equal(record.weight_grad.float())
        scale = want[name]["delta"].abs().max()
        assert (record.delta - want[name]["delta"]).abs().max() < 0.1 * scale
    with (
        bp.record_error_signals(model) as signals,
        torch.autocast("cpu", torch.bfloat16),
    ):
        loss(model(input)).backward()  # autocast is on in the backward pass too
    assert 0 < signals["0"][0].delta.rms < 1


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_input_grad_is_the_layer_s_own_under_padding_modes(mode: str) -> None:
    layer = bp.ConvBP2d(2, 3, 3, padding=(1, 2), padding_mode=mode, dtype=torch.float64)
    input = batch().requires_grad_()
    signals = recorded(layer, input)
    assert signals.names() == [""]
    torch.testing.assert_close(signals[""][0].input_grad, input.grad)


def test_input_without_a_batch() -> None:
    layer = bp.ConvBP2d(2, 3, 3, dtype=torch.float64)
    signals = recorded(layer, batch()[0])
    assert signals[""][0].delta.shape == (1, 3, 6, 6)


def test_nested_blocks() -> None:
    """Each has its own layers, names, and time."""
    model = nn.Sequential(network())
    with bp.record_error_signals(model) as outer:
        with bp.record_error_signals(model[0], limit=1) as inner:
            loss(model(batch())).backward()
        loss(model(batch())).backward()
    assert inner.names() == LAYERS and outer.names() == [f"0.{name}" for name in LAYERS]
    assert all(len(records) == 1 for records in inner.values())
    assert all(len(records) == 2 for records in outer.values())
    assert inner["5"][0] == outer["0.5"][0]


def test_layers_that_join_later_are_not_recorded() -> None:
    model = network()
    with bp.record_error_signals(model) as signals:
        removed, model[6] = model[6], bp.LinearBP(5, 3, dtype=torch.float64)
        loss(model(batch())).backward()
    assert signals.names() == LAYERS and signals["6"] == ()
    assert hooks(model) == hooks(removed) == 0


def test_a_function_between_layers_is_nobodys() -> None:
    model, weight = network(), normal((2, 2, 1, 1), torch.float64, 3).requires_grad_()
    with bp.record_error_signals(model) as signals:
        loss(model(bp.functional.conv2d(batch(), weight))).backward()
    assert all(len(records) == 1 for records in signals.values())


def test_loss_with_a_gradient_in_it() -> None:
    """The backward pass of the backward pass is not the layer's own: one record a pass through it.

    The loss is no linear function, so its gradient depends on the output: two passes each.
    """
    model, input = network(g="tanh"), batch().requires_grad_()
    with bp.record_error_signals(model, keep="tensors") as signals:
        (grad,) = torch.autograd.grad(loss(model(input)), input, create_graph=True)
        assert all(len(records) == 1 for records in signals.values())
        assert not signals["0"][0].delta.requires_grad
        grad.square().sum().backward()
    assert {name: len(records) for name, records in signals.items()} == dict.fromkeys(LAYERS, 2)


def test_threads() -> None:
    models, found = [network() for _ in range(4)], {}

    def train(number: int) -> None:
        with bp.record_error_signals(models[number], keep="tensors") as signals:
            for _ in range(5):
                loss(models[number](batch())).backward()
        found[number] = signals

    threads = [threading.Thread(target=train, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    plain = recorded(network(), batch())
    for signals in found.values():
        for name in LAYERS:
            assert len(signals[name]) == 5
            assert torch.equal(signals[name][-1].delta, plain[name][0].delta)


def test_one_model_in_two_threads() -> None:
    model = network()
    with bp.record_error_signals(model) as signals:
        thread = threading.Thread(target=lambda: loss(model(batch())).backward())
        thread.start()
        loss(model(batch())).backward()
        thread.join()
    assert all(len(records) == 2 for records in signals.values())


def grad_of(model: nn.Module, input: Tensor) -> None:
    values = dict(model.named_parameters())
    torch.func.grad(lambda v: loss(torch.func.functional_call(model, v, (input,))))(values)


def vjp_of(model: nn.Module, input: Tensor) -> None:
    output, vjp = torch.func.vjp(model, input)
    vjp(torch.ones_like(output))


def batched_backward(model: nn.Module, input: Tensor) -> None:
    output = model(input)
    directions = torch.eye(output.numel(), dtype=output.dtype).view(-1, *output.shape)
    torch.autograd.grad(output, list(model.parameters()), directions, is_grads_batched=True)


@pytest.mark.parametrize("run", [grad_of, vjp_of, batched_backward])
def test_transforms_are_not_recorded_and_say_so(run: Any) -> None:
    model = network()
    with (
        pytest.warns(UserWarning, match=r"torch\.func.*: 0, 1, 2, 5, 6") as caught,
        bp.record_error_signals(model, keep="tensors") as signals,
    ):
        run(model, batch())
        run(model, batch())
    assert len(caught) == 1
    assert signals.traced() == LAYERS and not any(signals.values())


def test_functional_call_is_recorded() -> None:
    model = network()
    with bp.record_error_signals(model) as signals:
        loss(torch.func.functional_call(model, dict(model.named_parameters()), batch())).backward()
    assert all(len(records) == 1 for records in signals.values())


def test_what_is_constant_while_tracing_is_marked_as_torch_does() -> None:
    def mine() -> None: ...

    def torchs() -> None: ...

    torch.compiler.assume_constant_result(torchs)
    assert vars(constant_while_tracing(mine)) == vars(torchs) != {}


def test_compiled_in_the_block() -> None:
    model, plain = network(), network()
    loss(plain(batch())).backward()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with (
        pytest.warns(UserWarning, match=r"torch\.compile.*: 0, 1, 2, 5, 6") as caught,
        bp.record_error_signals(model) as signals,
    ):
        for _ in range(2):
            model.zero_grad()
            loss(compiled(batch())).backward()
    assert len(caught) == 1 and not any(signals.values())
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    loss(compiled(batch())).backward()
    torch.compiler.reset()


def test_compiled_once_for_all_blocks() -> None:
    model = network()
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for _ in range(4):
        with pytest.warns(UserWarning, match=r"torch\.compile"), bp.record_error_signals(model):
            loss(compiled(batch())).backward()
    assert len(graphs) == 1
    torch.compiler.reset()


def test_compiled_before_the_block() -> None:
    """The compiled graph knows nothing of the recording, and is not compiled anew for it."""
    model = network()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss(compiled(batch())).backward()
    with (
        pytest.warns(UserWarning, match=r"nothing was recorded.*torch\.compile"),
        bp.record_error_signals(model) as signals,
        torch.compiler.set_stance("fail_on_recompile"),
    ):
        loss(compiled(batch())).backward()
    assert not any(signals.values())
    torch.compiler.reset()


def test_one_part_compiled() -> None:
    model = network()
    model[1].forward = torch.compile(model[1].forward, backend="aot_eager")
    with warnings.catch_warnings(record=True), bp.record_error_signals(model) as signals:
        loss(model(batch())).backward()
    assert [len(signals[name]) for name in LAYERS] == [1, 0, 1, 1, 1]
    torch.compiler.reset()


def test_compiled_autograd() -> None:
    from torch._dynamo import compiled_autograd

    model = network()
    with (
        pytest.warns(UserWarning),
        bp.record_error_signals(model, keep="tensors") as signals,
        compiled_autograd._enable(torch.compile(backend="eager")),
    ):
        loss(model(batch())).backward()
    assert not any(signals.values())
    torch.compiler.reset()


def test_export_in_the_block() -> None:
    model = network().eval()
    with pytest.warns(UserWarning), bp.record_error_signals(model) as signals:
        exported = torch.export.export(model, (batch(),))
    assert not any(signals.values())
    torch.testing.assert_close(exported.module()(batch()), model(batch()))


def test_what_and_arguments() -> None:
    model = network()
    for what in (("delta",), iter(["delta"])):
        with bp.record_error_signals(model, what=what, limit=10**30) as signals:
            loss(model(batch())).backward()
        assert isinstance(signals["1"][0].delta, Statistics)
        assert signals["1"][0][2:] == (None, None, None)
    for options, message in (
        ({"keep": "all"}, "'keep' must be 'statistics' or 'tensors'"),
        ({"limit": 0}, "'limit' must be an int >= 1"),
        ({"limit": True}, "'limit' must be"),
        ({"what": "delta"}, "'what' must be one or more"),
        ({"what": ("gradient",)}, "'what' must be one or more"),
        ({"what": ()}, "'what' must be one or more"),
        ({"what": [["delta"]]}, "'what' must be one or more"),
        ({"what": None}, "'what' must be one or more"),
        ({"what": 5}, "'what' must be one or more"),
        ({"keep": ["tensors"]}, "'keep' must be 'statistics' or 'tensors'"),
    ):
        with pytest.raises(ValueError, match=message), bp.record_error_signals(model, **options):
            pass
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"), bp.record_error_signals(loss):
        pass
    plain = nn.Sequential(nn.Conv2d(2, 3, 3))
    with pytest.raises(ValueError, match="convert"), bp.record_error_signals(plain):
        pass
    with pytest.raises(KeyError, match="'7' is no layer of torch_convbp here"):
        signals["7"]
    assert "7" not in signals and signals.get("7") is None


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_made_in_the_block_is_not_hooked(how: str) -> None:
    """But it keeps what the user hooked to the layer; and the layer itself is recorded on."""
    layer = network()[1]
    layer.register_forward_pre_hook(nothing)
    layer.register_forward_hook(nothing, always_call=True)
    input = normal((4, 4, 8, 8), torch.float64, 1)
    with bp.record_error_signals(layer) as signals:
        copied = COPIES[how](layer)
        assert hooks(copied) == 2 and len(copied._forward_hooks_always_called) == 1
        assert hooks(layer) == 4 and len(layer._forward_hooks_always_called) == 2
        loss(copied(input)).backward()
        assert not signals[""]
        loss(layer(input)).backward()
        assert len(signals[""]) == 1
    assert hooks(layer) == hooks(copied) == 2


def nothing(*_: Any) -> None:
    """A user's hook."""


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("keep", ["statistics", "tensors"])
def test_signals_can_be_copied(how: str, keep: str) -> None:
    """The records, not the model; nothing more is recorded in the copy."""
    model = network()
    with bp.record_error_signals(model, keep=keep) as signals:
        loss(model(batch())).backward()
        copied = COPIES[how](signals)
        loss(model(batch())).backward()
    assert list(copied) == list(signals) == LAYERS
    for name, records in signals.items():
        assert len(records) == 2 and len(copied[name]) == 1
        for ours, theirs in zip(copied[name][0], records[0], strict=True):
            assert type(ours) is type(theirs)
            assert torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs
    assert len(repr(copied).splitlines()) == 1 + len(LAYERS)
    copied.clear()
    assert not copied["1"] and signals["1"] and copied.complaint() is None


def test_converted_models() -> None:
    model = bp.convert(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True)).double())
    signals = recorded(model, batch())
    assert len(signals["0"]) == 1
    assert torch.equal(signals["0"][0].delta == 0, model(batch()) == 0)


def test_every_layer_can_be_recorded() -> None:
    for name in modules.__all__:
        assert issubclass(getattr(modules, name), recording.Layer)


@pytest.mark.parametrize("pool", [bp.MaxPoolBP2d(2), bp.AvgPoolBP2d(2)], ids=str)
def test_pools_pass_a_signal_on(pool: nn.Module) -> None:
    """L8: a pool has an error signal from above and hands one down; it has no parameters."""
    model = nn.Sequential(bp.ConvBP2d(3, 4, 3, dtype=torch.float64), pool)
    input = normal((2, 3, 8, 8), torch.float64, 1)
    with bp.record_error_signals(model, keep="tensors") as signals:
        (model(input) ** 2).sum().backward()
    (pooled,), (below,) = signals["1"], signals["0"]
    assert torch.equal(pooled.delta, 2 * model(input).detach())
    assert torch.equal(pooled.input_grad, below.delta)
    assert pooled.weight_grad is None and pooled.bias_grad is None


def test_table() -> None:
    model = nn.Sequential(network(), bp.LinearBP(3, 2, dtype=torch.float64))
    with bp.record_error_signals(model, keep="tensors") as signals:
        loss(model[0](batch())).backward()
    head, *rows = str(signals).splitlines()
    assert head.split("  ")[0] == "layer" and "delta rms" in head
    assert [row.split()[0] for row in rows] == [*(f"0.{name}" for name in LAYERS), "1"]
    assert rows[-1].split() == ["1", "0"]
    assert f"{Statistics.of(signals['0.0'][0].delta).rms:.3g}" in rows[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "expanded", "sliced"])
def test_statistics(dtype: torch.dtype, layout: str) -> None:
    tensor = normal((3, 5, 40, 33), dtype, 1)
    tensor[tensor > 1] = 0
    if layout == "channels_last":
        tensor = tensor.to(memory_format=torch.channels_last)
    elif layout == "expanded":
        tensor = tensor[:, :, :1, :1].expand(3, 5, 40, 33)
    elif layout == "sliced":
        tensor = tensor[:, 1:, ::3]
    found, exact = Statistics.of(tensor), tensor.double()
    assert found.size == tensor.numel() and found.share_finite == 1.0
    assert math.isclose(found.norm, exact.norm().item(), rel_tol=1e-6)
    assert abs(found.mean - exact.mean().item()) < 1e-6
    assert found.max_abs == exact.abs().max().item()
    assert abs(found.share_of_zeros - (exact == 0).double().mean().item()) < 1e-7
    assert math.isclose(found.rms, exact.square().mean().sqrt().item(), rel_tol=1e-6)


def test_statistics_of_vanishing_exploding_and_broken_signals() -> None:
    """Squares of what vanishes or explodes leave float32 long before it does."""
    ones = torch.ones(10, 1000)
    for size in (1e-40, 1e-30, 1e-20, 1e20, 3e38):
        found = Statistics.of(ones * size)
        exact = (ones * size)[0, 0].item()
        assert math.isclose(found.rms, exact, rel_tol=1e-3 if size < 1e-37 else 1e-6)
        assert math.isclose(found.mean, exact, rel_tol=1e-3 if size < 1e-37 else 1e-6)
    assert Statistics.of(ones.double() * 1e-200).rms == pytest.approx(1e-200)
    assert Statistics.of(ones * 0) == Statistics(0.0, 0.0, 0.0, 1.0, 1.0, 10000)
    for bad in (math.nan, math.inf, -math.inf):
        broken = ones.clone()
        broken[3, 5] = bad
        found = Statistics.of(broken)
        assert not math.isfinite(found.norm) and not math.isfinite(found.max_abs)
        assert found.share_finite == 1 - 1e-4
        together = Statistics.of_all([found, Statistics.of(ones)])
        assert not math.isfinite(together.norm) and not math.isfinite(together.max_abs)
    empty = Statistics.of(ones[:0])
    assert empty.size == 0 and empty.norm == 0 and math.isnan(empty.rms)


def test_statistics_taken_together() -> None:
    tensor = normal((7, 300), torch.float64, 1).relu()
    parts = [Statistics.of(part) for part in tensor.split(2)]
    whole = Statistics.of(tensor)
    assert Statistics.of_all([*parts, Statistics.of(tensor[:0])]) == pytest.approx(whole)
    assert Statistics.of_all([]).size == 0
