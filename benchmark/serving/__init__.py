"""The serving benchmark: many requests against any OpenAI-style server. `__main__` says how to run it.

arguments   the command line, checked
tokens      who counts a text's tokens: the server, a tokenizer's file, or nobody
prompts     what is asked: built-in text of exact length, or a dataset's
arrivals    when
traffic     the requests of one level, sent
metrics     what they amount to, as `vllm bench serve` defines it
report      tables, files, a picture
"""
