from ipc.config import TokenizerConfig
from ipc.process import run
from tokenizer_proc.main import serve

run("tokenizer", TokenizerConfig, serve)
