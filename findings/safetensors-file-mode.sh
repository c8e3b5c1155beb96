#!/usr/bin/env bash
# Surprise: safetensors' save_file gives its file mode 0600 whatever the umask is, where numpy.save and open() give 0644.
# A guess from other writers of weights (numpy, torch.save, onnx.save) is that the umask decides. A model that one user
# saves cannot be read by the user who serves it. save() and an ordinary write of the bytes honour the umask.
# Versions: safetensors 0.8.0, numpy 2.4.6, Python 3.11. Seen: save_file 600, save + write_bytes 644, numpy.save 644.
# Date: 2026-11-28.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cd "$work"
umask 022
./env/bin/python - <<'PYTHON'
import pathlib
import sys

import numpy as np
from safetensors.numpy import load_file, save, save_file

tensors = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
save_file(tensors, "file.safetensors")
pathlib.Path("bytes.safetensors").write_bytes(save(tensors))
np.save("array.npy", tensors["weight"])
assert (load_file("file.safetensors")["weight"] == tensors["weight"]).all()
modes = {path: oct(pathlib.Path(path).stat().st_mode & 0o777) for path in ("file.safetensors", "bytes.safetensors", "array.npy")}
print(modes)
expected = {"file.safetensors": "0o600", "bytes.safetensors": "0o644", "array.npy": "0o644"}
sys.exit(modes != expected)
PYTHON
echo "as stated"
