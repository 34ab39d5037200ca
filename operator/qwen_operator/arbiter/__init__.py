"""Who gets the GPUs when there are too few for all deployments. Pure.

Nothing calls this folder yet. Whoever calls it must keep to this:

* A pool is all nodes that offer one resource, such as nvidia.com/gpu. If all its deployments have the same priority, the
  scheduler ends no pod for another one. Then there is nothing to decide, and a pod that waits is what node autoscalers
  need to see.
* `Claim.nodes` must not have a node that the scheduler would not take, for example because of an affinity. A pod that is
  made for such a place finds none, and the scheduler ends pods of a lower priority for it.
* `Claim.priority` is the value of the PriorityClass, also before the first pod exists.
* A pod may be created only up to `Grant.replicas` of a grant from this look. A wish that came later waits for the next.
* Of its draining replicas, a deployment may take back only those in `Grant.returns`.
* GPUs that pods of others take must be taken off `Pool.nodes`. The operator does not see those pods today.
* Another tenant must not read the names in `Grant.waits_for` of other namespaces.
"""
