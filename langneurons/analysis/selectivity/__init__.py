"""What neurons carry: how much of their activation language, task label and both together explain."""
