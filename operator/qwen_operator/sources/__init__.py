"""Where models come from: one module for each scheme of `spec.source.uri`. Pure.

A scheme module (`pvc`, `hf`, `modelscope`) says how facts are found, what the source adds to the engine's command,
environment and pod, and what its failures mean. `registry` lists the schemes and is what everybody else calls.
`inspection` and `hub_facts` hold what several schemes share: facts from a pod that reads the files, and facts from the
catalog or from a hub's answer.

To add a scheme: its form in `api/uris.py` (and its name in the description of `spec.source.uri`), its module here,
and its line in `registry.SCHEMES`.
"""
