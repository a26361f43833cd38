"""What all tests share: quiet Ray settings, no leaks of random state, no silent skip of a GPU."""

import os

# Before anything imports ray, which reads some of these once.
os.environ.update(
    RAY_AUTH_MODE="disabled",  # else a local Ray writes ~/.ray/auth_token
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_BACKEND_LOG_LEVEL="fatal",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    OMP_NUM_THREADS="1",
)

import logging
import random
from collections.abc import Iterator

import numpy as np
import pytest
