"""What the commands do, in order, on an open experiment."""
