"""A third-party package: its own model, tower, task, metric, store and format; used by tests/test_plugins.py."""

from dualfuse.convert.formats import register_format
from toy_plugin.format import FORMAT

register_format(FORMAT)
