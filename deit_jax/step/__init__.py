"""What happens inside a jitted step: pure functions of arrays."""
