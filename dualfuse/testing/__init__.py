"""Contract tests as functions: a third party runs them on their own class, and the tests of this package do too."""

from dualfuse.testing.formats import check_format
from dualfuse.testing.models import check_model
from dualfuse.testing.stores import check_store
from dualfuse.testing.tasks import check_task

__all__ = ["check_format", "check_model", "check_store", "check_task"]
