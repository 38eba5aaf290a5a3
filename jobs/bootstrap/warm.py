"""Import what the stages need, once: the fork server loads this module, and every stage's process is a fork of it.

Importing takes each stage about 6 s of a slow core otherwise. Nothing is started here: no thread, no session, no GPU,
which a fork could not take over. DeepSpeed is absent, since it chooses its accelerator when it is imported.
"""

import peft  # noqa: F401
import ray.data  # noqa: F401
import transformers.models.chameleon.modeling_chameleon  # noqa: F401

import jobs.bootstrap.plan  # noqa: F401
import wm.evaluation.report.report  # noqa: F401
