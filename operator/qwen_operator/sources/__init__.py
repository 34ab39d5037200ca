"""Where models come from: one module for each scheme of `spec.source.uri`. Pure.

A scheme module (`pvc`, `hf`, `modelscope`, `s3`, `oci`) defines how the operator gets the facts, what the source adds
to the engine's command, environment and pod, and what its failures mean. `registry` lists the schemes; other packages
call only `registry`. Several schemes share three modules: `inspection` gets facts from a pod that reads the files,
`hub_facts` gets them from the catalog or from a hub's answer, and `hub_files` says who downloads a hub's files.
`image_volumes` reads what such a pod shows of an image that it mounts. `adapters` adds what LoRA adapters on hubs and
in buckets need, and `credentials` has the variables of private sources.

To add a scheme, add its form to `api/uris.py` (and its name to the description of `spec.source.uri`), a module here,
and a line in `registry.SCHEMES`.
"""
