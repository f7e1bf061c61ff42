"""The tokenizer: chat templates, text to token ids, and the limits that a request must keep."""
