"""The one way anything is trained: state, update, loop, checkpoints, placement."""
