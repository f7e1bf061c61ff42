"""The model runner: weights, KV tensors, attention, sampling. The only room that imports torch."""
