"""`qwen-operator doctor`: looks at a cluster, or at one QwenDeployment, and says what is wrong and how to cure it.

`collect` is the only part that reads the cluster. The checks, the report and the redaction are pure.
"""
