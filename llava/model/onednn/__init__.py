"""Multiply by oneDNN when a model answers on a CPU: in linear layers and in attention.

PyTorch multiplies float32 matrices with MKL. On an AMD processor with AVX-512, which MKL does not use there,
this took twice as long as with oneDNN. Without AVX-512 both took about the same; Intel's processors were not
measured (scripts/bench/README.md). In half precision PyTorch uses oneDNN itself where it can.
"""
