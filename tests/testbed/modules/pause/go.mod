module qwen-operator.dev/testbed/pause

go 1.26.0
