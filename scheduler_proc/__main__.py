from ipc.config import SchedulerConfig
from ipc.process import run
from scheduler_proc.main import serve

run("scheduler", SchedulerConfig, serve)
