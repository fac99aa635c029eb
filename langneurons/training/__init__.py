"""Training only them: masked updates of chosen neurons, fine-tuning, and the transfer experiment."""
