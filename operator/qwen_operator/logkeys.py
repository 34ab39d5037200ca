"""The keys of log lines besides time, level, logger and message: an interface for those who search the logs."""

from enum import StrEnum


class LogKey(StrEnum):
    """What a line may say; a test holds every line of the package against this."""

    # of whom: namespace/name of a QwenDeployment; name (or namespace/name) of another object
    DEPLOYMENT = "deployment"
    OBJECT = "object"
    RESOURCE = "resource"
    # why, in one word or sentence
    WHY = "why"
    REASON = "reason"
    CAUSE = "cause"
    ERROR = "error"
    # numbers and states of a change
    STATUS = "status"
    READY = "ready"
    REPLICAS = "replicas"
    BEFORE = "before"
    PODS = "pods"
    RETRY_SECONDS = "retry_seconds"
    # of the process
    NAMESPACES = "namespaces"
    WORKERS = "workers"
    LEASE = "lease"
    HOLDER = "holder"
