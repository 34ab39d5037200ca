"""`qwen-operator cache`: lists and cleans the cache of a namespace from a person's machine, through short-lived pods.

`places` finds out where the cache is, and `session` runs the pods, with the rights of the person's kubeconfig. `pods`
has their manifests, and `table` reads what they print, chooses what goes, and shows it; both are pure.
"""
