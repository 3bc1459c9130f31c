"""float32 convolutions on the GPU follow torch's own setting of TF32."""

from __future__ import annotations

import subprocess
import sys

import pytest

from torch_convbp import extension

# A process for each, because old and new settings do not mix: statements, and whether float32 may
# be rounded to TF32 after them.
SETTINGS = {
    "allow_tf32": [
        ("pass", True),  # torch's default
        ("cudnn.allow_tf32 = False", False),
        ("cudnn.allow_tf32 = True", True),
    ],
    "fp32_precision": [
        ("cudnn.conv.fp32_precision = 'ieee'", False),
        ("cudnn.conv.fp32_precision = 'tf32'", True),
        ("cudnn.conv.fp32_precision = 'none'; cudnn.fp32_precision = 'ieee'", False),
        ("cudnn.fp32_precision = 'tf32'", True),
    ],
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_setting_is_followed(settings: str) -> None:
    """In Python; and, where the kernels are, as they ask for it: in C++, through the dispatcher."""
    operators = ["_allow_tf32"] + ["_cuda_tf32"] * (extension.cuda_missing is None)
    lines = ["import torch, torch_convbp", "cudnn = torch.backends.cudnn"]
    for statement, expected in SETTINGS[settings]:
        lines.append(statement)
        for operator in operators:
            found = f"torch.ops.torch_convbp.{operator}()"
            lines.append(f"assert {found} is {expected}, ({operator!r}, {statement!r})")
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
