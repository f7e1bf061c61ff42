from ipc.config import ModelConfig
from ipc.process import run
from model_proc.main import serve

run("model", ModelConfig, serve)
