"""Start the gateway's process."""

from gateway.main import serve
from ipc.config import GatewayConfig
from ipc.process import run

if __name__ == "__main__":
    run("gateway", GatewayConfig, serve)
