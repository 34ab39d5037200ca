"""The keys of log lines besides time, level, logger and message: a public interface, because people search for them."""

from enum import StrEnum


class LogKey(StrEnum):
    """All keys that a log line may have. A test checks every log line of the package against this list."""

    # the object: namespace/name of a QwenDeployment, name (or namespace/name) of another object
    DEPLOYMENT = "deployment"
    OBJECT = "object"
    RESOURCE = "resource"
    # the reason, in one word or sentence
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
    LOOKS = "looks"
    RETRY_SECONDS = "retry_seconds"
    # about the process
    NAMESPACES = "namespaces"
    DEPLOYMENTS = "deployments"
    FOLDER = "folder"
    WORKERS = "workers"
    LEASE = "lease"
    HOLDER = "holder"
