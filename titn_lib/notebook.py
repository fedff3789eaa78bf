"""The set-up cell that all notebooks share."""

import os
import platform
from pathlib import Path

import torch

from . import __version__
from .datasets import checkout


def setup() -> Path:
    """Say what this machine is, and return the folder where the notebooks' runs are kept.

    It is runs/ of the checkout, else runs/ where you are. What is finished there is loaded, not trained again.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores, no GPU"
    print(f"titn_lib {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}, {device}")
    return (checkout() or Path.cwd()) / "runs"
