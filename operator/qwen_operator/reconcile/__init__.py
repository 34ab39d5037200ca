"""The reconcile loop: store and queue, observe, decide (pure), act."""
