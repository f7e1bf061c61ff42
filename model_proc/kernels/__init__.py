"""What a decoder computes beside attention, behind one small interface: plain PyTorch, and Triton kernels."""
