"""Import what the stages need, once: the fork server loads this module, and every stage's process is a fork of it.

Importing takes each stage about 6 s of a slow core otherwise. Nothing is started here, no thread and no session, which
a fork could not take over; on a machine with a GPU this module is not loaded.
"""

import os

# DeepSpeed looks for an accelerator when it is imported, and says that there is none.
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed.comm
import deepspeed.ops  # noqa: F401
import peft  # noqa: F401
import ray.data  # noqa: F401
import transformers.models.chameleon.modeling_chameleon  # noqa: F401

import jobs.bootstrap.plan  # noqa: F401
import wm.evaluation.report.report  # noqa: F401
