"""Write an ONNX file: the model for ONNX Runtime, which needs no PyTorch."""
import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporting.agreement import Run, make_inputs, require_agreement
from exporting.graph import FbankToScores, WaveformToScores, describe
from exporting.trained import Trained
from models.atomic import atomic_write
from utilities.errors import DataError
from utilities.folders import output_folders
from utilities.parallel import available_cores
