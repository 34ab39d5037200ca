"""Tests of `qwen-operator cache`."""
