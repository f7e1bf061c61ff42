"""The model runner: weights, KV tensors, attention, sampling. The only room that imports torch."""

import os

# cuBLASLt chooses better kernels for products of some 64 to 128 rows with large matrices than plain cuBLAS does
# (docs/gpu.md). PyTorch reads this when it is imported.
os.environ.setdefault("TORCH_BLAS_PREFER_CUBLASLT", "1")
