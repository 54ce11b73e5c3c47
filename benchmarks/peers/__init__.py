"""What people would pick instead: one small program each, as its own documentation teaches it."""
