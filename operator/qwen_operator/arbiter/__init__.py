"""Who gets the GPUs when there are too few for all deployments. Pure.

A pool is all nodes that offer one resource, such as nvidia.com/gpu. If all its deployments have the same priority, the
scheduler ends no pod for another one. Then there is nothing to decide, and a pod that waits is what node autoscalers
need to see. `controller/arbiter.py` collects the claims and hands out the grants; reconcile keeps to a grant.

ranks.py: who comes first. decide.py: the decision. claims.py, fits.py, priorities.py: what the operator knows of pods,
nodes and classes. asking.py: from a decision about one deployment to its claim, and from a grant to its pods.
"""
