"""From a GGUF file to a folder in the form of `transformers`: config, tokenizer and dequantized weights."""
