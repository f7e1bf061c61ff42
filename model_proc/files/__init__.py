"""Where a model's files are: the embedded one, a folder, a GGUF file, the hub; and what is kept in the cache."""
