"""What the programs that `tests/forked.py` starts need; imported once, by the process that they are forked from."""

# ruff: noqa: F401

import gc

import matplotlib.pyplot
import torch._dynamo

import codetr_cli.commands.eval
import codetr_cli.commands.predict
import codetr_cli.commands.train
import codetr_cli.distributed.fsdp
import codetr_cli.distributed.launcher
import codetr_cli.evaluation.job
import codetr_cli.prediction.job
import codetr_cli.training.plots
import codetr_cli.training.preview
import codetr_cli.training.setup
import tests.conftest
import tests.training.fakes

gc.collect()
gc.freeze()
