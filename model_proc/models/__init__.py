"""Models: our own decoder for the Llama family and its kin, and everything else through `transformers`."""
