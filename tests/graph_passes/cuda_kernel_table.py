"""Write ``graph_passes/cuda_kernels.json``: the CUDA kernels of ONNX Runtime for the operators that the passes insert.

    python -m tests.graph_passes.cuda_kernel_table Add And Cast ...

The rows of Div, GatherND, Gemm, MatMul, NonZero, ScatterND and Sqrt are those of ONNX Runtime's own list,
docs/OperatorKernels.md, and registrations.

Run where the providers' libraries load (CUDA's and TensorRT's libraries on the path; no GPU is needed): the table is
what this onnxruntime-gpu itself registers. Per ``domain::operator`` it holds a list of [first opset, last opset or
null, {type constraint: [types]}].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

PROVIDER = "CUDAExecutionProvider"
OPEN_ENDED = 2**31 - 1
OPSETS = range(18, 26)
TABLE = Path(__file__).parents[2] / "graph_passes" / "cuda_kernels.json"

# First opset, last opset, types per constraint.
Row = list[Any]


def kernels(operators: set[str]) -> dict[str, list[Row]]:
    """The kernels of standard operators, those that differ in one constraint's types joined."""
    found: dict[str, list[Row]] = {f"::{operator}": [] for operator in sorted(operators)}
    for kernel in get_all_opkernel_def():
        rows = found.get(f"::{kernel.op_name}")
        if rows is None or kernel.provider != PROVIDER or kernel.domain != "":
            continue
        first, last = kernel.version_range
        if not any(first <= version <= last for version in versions(kernel.op_name)):
            continue
        types = {
            constraint: sorted(kind for kind in kinds if kind.startswith("tensor("))
            for constraint, kinds in sorted(kernel.type_constraints.items())
        }
        join(rows, [first, None if last == OPEN_ENDED else last, types])
    return found


def versions(operator: str) -> set[int]:
    """The versions of an operator that graphs can have that are baked into."""
    return {onnx.defs.get_schema(operator, opset).since_version for opset in OPSETS}


def join(rows: list[Row], new: Row) -> None:
    for first, last, types in rows:
        if [first, last, types.keys()] == [*new[:2], new[2].keys()]:
            different = [constraint for constraint in types if types[constraint] != new[2][constraint]]
            if len(different) <= 1:
                for constraint in different:
                    types[constraint] = sorted({*types[constraint], *new[2][constraint]})
                return
    rows.append(new)


def main() -> None:
    """Write the table for the operators named on the command line."""
    rows = kernels(set(sys.argv[1:]))
    lines = ",\n".join(
        f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(row) for row in of_one) + "\n]"
        for name, of_one in rows.items()
    )
    TABLE.write_text(
        f'{{"onnxruntime": "{onnxruntime.__version__}", "provider": "{PROVIDER}", "kernels": {{\n{lines}\n}}}}\n'
    )


if __name__ == "__main__":
    main()
