"""Replays request traces through scaling rules, in a simulator of SGLang engines."""
