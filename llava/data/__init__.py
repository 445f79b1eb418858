"""The tensor side of the data: one sample to tensors, tensors to a batch, and the order of an epoch."""
