from detok_proc.main import serve
from ipc.config import DetokenizerConfig
from ipc.process import run

run("detokenizer", DetokenizerConfig, serve)
