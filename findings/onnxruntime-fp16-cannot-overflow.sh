#!/usr/bin/env bash
# Surprise: on the CPU, ONNX Runtime computes a float16 graph in float32 and rounds only where the graph's own inputs,
# outputs and stored weights are float16. A guess is that a value above 65,504 inside a float16 graph becomes infinite, so
# that a run on the CPU shows whether a GPU would overflow. It shows nothing: the result is the float32 one, finite.
# Versions: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6, Python 3.11.
# Seen: x = 4000, (x * 4000) / 4000 with every tensor in float16: ONNX Runtime 4000.0, numpy float16 inf; the optimised
# graph holds Cast nodes to float32 that the given graph has not.
# Date: 2026-11-28.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$work"
./env/bin/python - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

half = np.float16
factor = numpy_helper.from_array(np.array([4000], half), "factor")
nodes = [helper.make_node("Mul", ["x", "factor"], ["large"]), helper.make_node("Div", ["large", "factor"], ["y"])]
ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1])] for name in ("x", "y")]
graph = helper.make_graph(nodes, "product", *ends, initializer=[factor])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
onnx.checker.check_model(model, full_check=True)

options = ort.SessionOptions()
options.optimized_model_filepath, options.log_severity_level = "optimized.onnx", 3
session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
x = np.array([4000], half)
(y,) = session.run(None, {"x": x})
with np.errstate(over="ignore"):
    expected = x * half(4000) / half(4000)
casts = sum(node.op_type == "Cast" for node in onnx.load("optimized.onnx").graph.node)
print(f"ONNX Runtime {y[0]} ({y.dtype}), numpy {expected[0]} ({expected.dtype}), Cast nodes inserted: {casts}")
sys.exit(not (y.dtype == half and y[0] == 4000 and np.isinf(expected[0]) and casts > 0))
PYTHON
echo "as stated"
