"""The part of ``python -m torch_convbp.info`` that may fail, or end its process: it imports torch
and the package, and computes. Each fact is a line of JSON as soon as it is known."""

from __future__ import annotations

import json
from typing import Any

# Share of the largest entry: more than any rounding of float32 or TF32, less than any mistake.
TOLERANCE = 1e-2


def main() -> None:
    say(step="import torch")
    import torch

    cuda = torch.version.cuda or "none: this torch is a CPU build"
    say(versions={"torch": torch.__version__, "torch's CUDA": cuda})
    say(machine={"gpus": gpus(torch)})

    say(step="import torch_convbp")
    import torch_convbp as bp
    from torch_convbp import extension

    say(libraries={"_C": f"{extension.find('_C')}, loaded"})
    path, missing = extension.find("_C_cuda"), extension.cuda_missing
    place = f"{path}, not loaded" if path else "missing"
    say(libraries={"_C_cuda": f"{place}: {missing}" if missing else f"{path}, loaded"})

    say(step="choose the kernels")
    say(
        {
            "in use": {
                "capability": bp.backends.cpu.capability(),
                "convolutions": bp.backends.cpu.conv_algorithm,
                "threads": str(torch.get_num_threads()),
            }
        }
    )
    for device in ("cpu", "cuda") if bp.backends.cuda.is_available() else ("cpu",):
        say(step=f"compute ({device})")
        error = difference(torch, bp, device)
        say({"in use": {f"difference from torch ({device})": f"{error:.1e}"}})
        if not error <= TOLERANCE:
            say(problems={f"compute ({device})": f"{error:.1e} from torch's convolution"})


def say(facts: dict[str, Any] | None = None, **more: Any) -> None:
    print(json.dumps({**(facts or {}), **more}), flush=True)


def gpus(torch: Any) -> str:
    try:
        torch.cuda.init()
    except Exception as error:  # many types: no driver, an old driver, a CPU build
        return f"none: {str(error).splitlines()[0]}"
    return "; ".join(
        f"{p.name}, {p.major}.{p.minor}, {p.total_memory / 2**30:.0f} GiB"
        for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    )


def difference(torch: Any, bp: Any, device: str) -> float:
    """Error of conv2d and its gradients against torch in float64, relative to the largest entry."""

    def computed(conv2d: Any, **to: Any) -> list[Any]:
        generator = torch.Generator().manual_seed(0)
        sizes = (2, 16, 16, 16), (16, 16, 3, 3), (16,)
        tensors = [torch.randn(s, generator=generator).to(**to).requires_grad_() for s in sizes]
        output = conv2d(*tensors, padding=1)
        return [output, *torch.autograd.grad(output.square().sum(), tensors)]

    ours = computed(bp.functional.conv2d, device=device)
    exact = computed(torch.nn.functional.conv2d, dtype=torch.float64)
    pairs = [(a.double().cpu(), b) for a, b in zip(ours, exact, strict=True)]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


if __name__ == "__main__":
    main()
